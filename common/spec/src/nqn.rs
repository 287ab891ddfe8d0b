//! NVMe Qualified Names: who a host or a subsystem is. Base 2.0 §4.5 (Base 2.1 §4.7).
//!
//! [`Nqn::new`] holds a name to the format of the specification and is what configuration should go through.
//! [`Nqn::lenient`] only asks for what makes a name safe to store and print; it is for names that a peer chose,
//! since widely deployed controllers let an administrator export a subsystem under any string.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::str::FromStr;

/// The longest name, in bytes, without its terminating NUL.
pub const MAX_LEN: usize = 223;

/// The field that carries a name on the wire, in bytes: NUL-terminated and NUL-padded.
pub const FIELD_LEN: usize = 256;

/// The well-known name of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Prefix of names made from a UUID.
pub const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// A validated name, stored in place.
#[derive(Clone)]
pub struct Nqn {
    bytes: [u8; MAX_LEN],
    len: u8,
}

/// Why a name was refused.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NqnError {
    /// No name at all.
    #[error("the nqn is empty; expected something like nqn.2024-01.org.example:disk1")]
    Empty,
    /// Longer than the specification allows.
    #[error("the nqn has {len} bytes; at most 223 are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// The 256-byte field has no terminating NUL within its first 224 bytes.
    #[error("the nqn field is not terminated by a nul within its first 224 bytes")]
    NotTerminated,
    /// Bytes after the terminating NUL.
    #[error("the nqn field holds a non-zero byte at offset {offset}, after the nul that ends the name")]
    Padding {
        /// Offset of the first such byte in the field.
        offset: usize,
    },
    /// Not UTF-8.
    #[error("the nqn is not utf-8: the first bad byte is at offset {offset}")]
    NotUtf8 {
        /// Bytes that were valid.
        offset: usize,
    },
    /// A control character, which no name needs and no log should print.
    #[error("the nqn holds a control character at offset {offset}")]
    ControlCharacter {
        /// Offset of the character in bytes.
        offset: usize,
    },
    /// Does not begin as a name must.
    #[error("the nqn does not begin with \"nqn.\"; expected something like nqn.2024-01.org.example:disk1")]
    Prefix,
    /// The date is not `yyyy-mm.`.
    #[error("the nqn does not continue with a year and a month, as in \"nqn.2024-01.\"")]
    Date,
    /// The reverse domain name is missing or malformed.
    #[error("the nqn has no valid reverse domain name after its date, as in \"org.example\"")]
    Domain,
    /// A name of the UUID form whose UUID is malformed.
    #[error(
        "the nqn is of the uuid form but does not end in a uuid such as 12345678-1234-1234-1234-123456789abc"
    )]
    Uuid,
}

impl Nqn {
    /// A name in the format of the specification: `nqn.yyyy-mm.reverse.domain[:anything]`, or the UUID form.
    ///
    /// # Errors
    /// What about the name is not allowed.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        check_form(name)?;
        Self::lenient(name)
    }

    /// A name of any form that is not empty, fits, and holds no control character.
    ///
    /// # Errors
    /// What about the name is not allowed.
    pub fn lenient(name: &str) -> Result<Self, NqnError> {
        if name.is_empty() {
            return Err(NqnError::Empty);
        }
        let source = name.as_bytes();
        let mut bytes = [0; MAX_LEN];
        let (Some(place), Ok(len)) = (bytes.get_mut(..source.len()), u8::try_from(source.len())) else {
            return Err(NqnError::TooLong { len: source.len() });
        };
        if let Some((offset, _)) = name.char_indices().find(|(_, c)| c.is_control()) {
            return Err(NqnError::ControlCharacter { offset });
        }
        place.copy_from_slice(source);
        Ok(Self { bytes, len })
    }

    /// The name in a NUL-padded field, held to the format of the specification.
    ///
    /// # Errors
    /// A field that is not NUL-terminated and NUL-padded, or a name that [`Nqn::new`] refuses.
    pub fn from_field(field: &[u8; FIELD_LEN]) -> Result<Self, NqnError> {
        Self::new(field_str(field)?)
    }

    /// The name in a NUL-padded field, of any form.
    ///
    /// # Errors
    /// A field that is not NUL-terminated and NUL-padded, or a name that [`Nqn::lenient`] refuses.
    pub fn from_field_lenient(field: &[u8; FIELD_LEN]) -> Result<Self, NqnError> {
        Self::lenient(field_str(field)?)
    }

    /// The NUL-padded field that carries this name.
    pub fn to_field(&self) -> [u8; FIELD_LEN] {
        let mut field = [0; FIELD_LEN];
        for (to, from) in field.iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
        field
    }

    /// The name's bytes, without padding.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // Every constructor starts from a `&str`, so the fallback is never taken.
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// The well-known name of discovery subsystems.
    pub fn discovery() -> Self {
        let mut bytes = [0; MAX_LEN];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(DISCOVERY_NQN.bytes()) {
            *to = from;
            len += 1;
        }
        Self { bytes, len }
    }

    /// Whether this is the well-known name of discovery subsystems.
    pub fn is_discovery(&self) -> bool {
        self.as_str() == DISCOVERY_NQN
    }

    /// Whether the name keeps the format of the specification, which a lenient one may not.
    pub fn is_well_formed(&self) -> bool {
        check_form(self.as_str()).is_ok()
    }
}

/// The string in a NUL-padded field.
fn field_str(field: &[u8; FIELD_LEN]) -> Result<&str, NqnError> {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(NqnError::NotTerminated)?;
    if end > MAX_LEN {
        return Err(NqnError::NotTerminated);
    }
    let (name, padding) = field.split_at(end);
    if let Some(extra) = padding.iter().position(|&byte| byte != 0) {
        return Err(NqnError::Padding { offset: end + extra });
    }
    core::str::from_utf8(name).map_err(|error| NqnError::NotUtf8 {
        offset: error.valid_up_to(),
    })
}

/// Base 2.0 §4.5: both formats begin with a date and a reverse domain name; the UUID form names a whole UUID.
fn check_form(name: &str) -> Result<(), NqnError> {
    if name.is_empty() {
        return Err(NqnError::Empty);
    }
    if name.len() > MAX_LEN {
        return Err(NqnError::TooLong { len: name.len() });
    }
    let rest = name.strip_prefix("nqn.").ok_or(NqnError::Prefix)?;
    let &[y0, y1, y2, y3, b'-', m0, m1, b'.', ref domain @ ..] = rest.as_bytes() else {
        return Err(NqnError::Date);
    };
    if ![y0, y1, y2, y3].iter().all(u8::is_ascii_digit)
        || !matches!((m0, m1), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2'))
    {
        return Err(NqnError::Date);
    }
    let domain = domain.split(|&byte| byte == b':').next().unwrap_or_default();
    let label_ok = |label: &[u8]| {
        !label.is_empty()
            && label
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && label.first() != Some(&b'-')
            && label.last() != Some(&b'-')
    };
    if !domain.split(|&byte| byte == b'.').all(label_ok) {
        return Err(NqnError::Domain);
    }
    if let Some(uuid) = name.strip_prefix(UUID_PREFIX)
        && !is_uuid(uuid)
    {
        return Err(NqnError::Uuid);
    }
    Ok(())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

impl TryFrom<&str> for Nqn {
    type Error = NqnError;

    fn try_from(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Nqn {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Nqn {}

impl PartialOrd for Nqn {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Nqn {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Nqn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nqn({})", self.as_str())
    }
}
