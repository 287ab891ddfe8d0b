//! Text in fixed-size fields: space-padded ASCII (identify, firmware) and NUL-padded strings (discovery).

/// Why text does not go into a field.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Longer than the field.
    #[error("the text has {len} bytes, its field holds {room}")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes that fit.
        room: usize,
    },
    /// A byte outside 20h to 7Eh, where the field takes printable ASCII alone.
    #[error("the text holds a byte that is not printable ascii at offset {offset}")]
    NotAscii {
        /// Offset of the byte.
        offset: usize,
    },
}

/// Fills a field with printable ASCII, padded with spaces: Base 2.0 §1.4.2 "ASCII data field".
///
/// # Errors
/// Text that is too long or not printable ASCII; the field is then unchanged.
pub fn set_ascii(field: &mut [u8], text: &str) -> Result<(), TextError> {
    let room = field.len();
    if text.len() > room {
        return Err(TextError::TooLong {
            len: text.len(),
            room,
        });
    }
    if let Some(offset) = text.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(TextError::NotAscii { offset });
    }
    for (to, from) in field.iter_mut().zip(text.bytes().chain(core::iter::repeat(b' '))) {
        *to = from;
    }
    Ok(())
}

/// The text of an ASCII field without its padding, or `None` when it holds anything but printable ASCII.
/// NULs are taken as padding too, since devices use them.
pub fn ascii(field: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(field).ok()?.trim_end_matches(['\0', ' ']);
    text.bytes()
        .all(|byte| (b' '..=b'~').contains(&byte))
        .then_some(text)
}

/// Fills a field with a string, padded with NULs.
///
/// # Errors
/// Text that is longer than the field less one NUL; the field is then unchanged.
pub fn set_nul_padded(field: &mut [u8], text: &str) -> Result<(), TextError> {
    let room = field.len().saturating_sub(1);
    if text.len() > room {
        return Err(TextError::TooLong {
            len: text.len(),
            room,
        });
    }
    for (to, from) in field.iter_mut().zip(text.bytes().chain(core::iter::repeat(0))) {
        *to = from;
    }
    Ok(())
}

/// The string in a NUL-padded field, or `None` when it is not UTF-8 or holds control characters. Trailing spaces
/// are dropped: several controllers pad discovery entries with them.
pub fn nul_padded(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = core::str::from_utf8(field.get(..end)?)
        .ok()?
        .trim_end_matches(' ');
    (!text.chars().any(char::is_control)).then_some(text)
}
