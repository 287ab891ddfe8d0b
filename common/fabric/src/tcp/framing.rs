//! [`Framing`]: what a connection's negotiation makes of every unit's layout, and how units are written.

use homi_queue::{Data, GatherList, MemoryError};
use homi_spec::tcp::{FatalError, PduHeader, PduType, TERM_REQ_MAX, TERM_REQ_MIN, TermReq, dgst, flags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::digest;
use super::error::{End, TransportError};

/// Bytes of a digest.
pub(crate) const DIGEST: usize = 4;
/// HLEN of ICReq and ICResp.
const IC_HEADER: u8 = 128;
/// HLEN of units that carry data or a response.
pub(crate) const SHORT_HEADER: u8 = 24;
/// HLEN of a command capsule.
pub(crate) const CAPSULE_HEADER: u8 = 72;
/// Most bytes of the offending unit that a terminate request repeats.
const ECHO_MAX: usize = 128;
/// Zeroes to pad with: no PDO is further than this from its header's end.
const ZEROES: [u8; 128] = [0; 128];

/// The negotiated layout. PDO is precomputed for both header lengths that can be followed by data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Framing {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// Alignment of the data that this end receives, in bytes.
    receive_alignment: u8,
    short_offset: u8,
    capsule_offset: u8,
}

/// Where a received unit's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Bytes between the header (with digest) and the data.
    pub(crate) padding: u8,
    /// Bytes of data.
    pub(crate) len: u32,
}

/// Alignment in bytes of a checked HPDA or CPDA (at most 31): 4 to 128.
const fn alignment(pda_z: u8) -> u8 {
    4 * (pda_z + 1)
}

impl Framing {
    /// The layout before negotiation, under which ICReq, ICResp and terminate requests travel.
    pub(crate) const fn initial() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            receive_alignment: 4,
            short_offset: SHORT_HEADER,
            capsule_offset: CAPSULE_HEADER,
        }
    }

    /// The layout with digests as in DGST, and the alignments (zero-based dwords, at most 31) of what is received and sent.
    pub(crate) fn negotiated(digests: u8, receive_pda_z: u8, send_pda_z: u8) -> Self {
        let header_digest = digests & dgst::HEADER != 0;
        let digest = if header_digest { DIGEST } else { 0 };
        let offset = |hlen: u8| {
            let offset = (usize::from(hlen) + digest).next_multiple_of(usize::from(alignment(send_pda_z)));
            // At most 76 + 127.
            u8::try_from(offset).unwrap_or(u8::MAX)
        };
        Self {
            header_digest,
            data_digest: digests & dgst::DATA != 0,
            receive_alignment: alignment(receive_pda_z),
            short_offset: offset(SHORT_HEADER),
            capsule_offset: offset(CAPSULE_HEADER),
        }
    }

    #[inline]
    pub(crate) const fn header_digest_len(&self) -> u8 {
        if self.header_digest { 4 } else { 0 }
    }

    #[inline]
    pub(crate) const fn data_digest_len(&self) -> u8 {
        if self.data_digest { 4 } else { 0 }
    }

    // ---- receiving ----

    /// Checks a unit's common header against its type's HLEN and the header digest in use. Returns how many bytes to
    /// gather before the header can be read: itself and its digest.
    #[inline]
    pub(crate) fn judge(&self, header: &PduHeader, hlen: u8) -> Result<usize, TransportError> {
        if header.hlen != hlen || header.has(flags::HDGST) != self.header_digest {
            return Err(Self::misshapen(header, hlen, self.header_digest));
        }
        Ok(usize::from(hlen + self.header_digest_len()))
    }

    /// Checks the common header of ICReq or ICResp, which has neither data nor digests.
    pub(crate) fn judge_initialize(header: &PduHeader) -> Result<usize, TransportError> {
        let initial = Self::initial();
        let len = initial.judge(header, IC_HEADER)?;
        initial.without_data(header)?;
        Ok(len)
    }

    /// Checks the common header of a terminate request, which is read with all that it repeats and has no digests.
    pub(crate) fn judge_terminate(header: &PduHeader) -> Result<usize, TransportError> {
        Self::initial().judge(header, SHORT_HEADER)?;
        let found = header.plen.get();
        if !(TERM_REQ_MIN..=TERM_REQ_MAX).contains(&found) {
            return Err(TransportError::PduLength {
                pdu: header.pdu_type,
                found,
                expected: found.clamp(TERM_REQ_MIN, TERM_REQ_MAX).into(),
            });
        }
        Ok(usize::try_from(found).unwrap_or(usize::from(SHORT_HEADER)))
    }

    /// The error for a type that is not expected in the connection's state.
    #[cold]
    pub(crate) fn unexpected(pdu: PduType, end: End, expected: &'static str) -> TransportError {
        if pdu.hlen().is_none() {
            TransportError::UnknownPdu(pdu)
        } else {
            TransportError::UnexpectedPdu { pdu, end, expected }
        }
    }

    #[cold]
    fn misshapen(header: &PduHeader, hlen: u8, negotiated: bool) -> TransportError {
        let pdu = header.pdu_type;
        if header.hlen == hlen {
            TransportError::DigestFlag {
                pdu,
                flags: header.flags,
                digest: "header",
                negotiated,
            }
        } else {
            TransportError::HeaderLength {
                pdu,
                expected: hlen,
                found: header.hlen,
            }
        }
    }

    /// Checks the digest at the end of a gathered header.
    #[inline]
    pub(crate) fn check_header(&self, bytes: &[u8]) -> Result<(), TransportError> {
        if self.header_digest {
            Self::check_header_digest(bytes)
        } else {
            Ok(())
        }
    }

    fn check_header_digest(bytes: &[u8]) -> Result<(), TransportError> {
        let Some((header, digest)) = bytes.split_last_chunk::<DIGEST>() else {
            return Ok(());
        };
        let (received, computed) = (u32::from_le_bytes(*digest), digest::of(header));
        if received == computed {
            return Ok(());
        }
        let pdu = PduType(bytes.first().copied().unwrap_or_default());
        Err(TransportError::HeaderDigest {
            pdu,
            received,
            computed,
        })
    }

    /// Checks that a unit ends with its header.
    #[inline]
    pub(crate) fn without_data(&self, header: &PduHeader) -> Result<(), TransportError> {
        let expected = u32::from(header.hlen) + u32::from(self.header_digest_len());
        let found = header.plen.get();
        if found == expected {
            return Ok(());
        }
        Err(TransportError::PduLength {
            pdu: header.pdu_type,
            found,
            expected: expected.into(),
        })
    }

    /// Checks a unit that carries data against its PDO, PLEN and flags, and tells where the data is. There is at least one
    /// byte of it.
    #[inline]
    pub(crate) fn with_data(&self, header: &PduHeader) -> Result<Payload, TransportError> {
        let pdu = header.pdu_type;
        let minimum = header.hlen + self.header_digest_len();
        if header.pdo < minimum || !header.pdo.is_multiple_of(self.receive_alignment) {
            return Err(TransportError::DataOffset {
                pdu,
                found: header.pdo,
                minimum,
                alignment: self.receive_alignment,
            });
        }
        if header.has(flags::DDGST) != self.data_digest {
            return Err(TransportError::DigestFlag {
                pdu,
                flags: header.flags,
                digest: "data",
                negotiated: self.data_digest,
            });
        }
        let around = u32::from(header.pdo) + u32::from(self.data_digest_len());
        match header.plen.get().checked_sub(around) {
            Some(len) if len > 0 => Ok(Payload {
                padding: header.pdo - minimum,
                len,
            }),
            _ => Err(TransportError::PduLength {
                pdu,
                found: header.plen.get(),
                expected: u64::from(around) + 1,
            }),
        }
    }

    // ---- sending ----

    /// The common header of a unit without data.
    #[inline]
    pub(crate) fn plain(&self, pdu: PduType, hlen: u8) -> PduHeader {
        let flags = if self.header_digest { flags::HDGST } else { 0 };
        let plen = u32::from(hlen + self.header_digest_len());
        PduHeader {
            pdu_type: pdu,
            flags,
            hlen,
            pdo: 0,
            plen: plen.into(),
        }
    }

    /// The common header of a unit with `len` bytes of data (at most [`MAX_TRANSFER`]); `flags` are LAST and SUCCESS.
    #[inline]
    pub(crate) fn carrying(&self, pdu: PduType, hlen: u8, len: u32, flags: u8) -> PduHeader {
        let pdo = if hlen == CAPSULE_HEADER {
            self.capsule_offset
        } else {
            self.short_offset
        };
        let mut flags = flags;
        if self.header_digest {
            flags |= flags::HDGST;
        }
        if self.data_digest {
            flags |= flags::DDGST;
        }
        let plen = u32::from(pdo) + len + u32::from(self.data_digest_len());
        PduHeader {
            pdu_type: pdu,
            flags,
            hlen,
            pdo,
            plen: plen.into(),
        }
    }

    /// Appends a header that no data follows.
    #[inline]
    pub(crate) fn push_header(&self, output: &mut GatherList, header: &[u8]) {
        output.push_bytes(header);
        if self.header_digest {
            output.push_bytes(&digest::of(header).to_le_bytes());
        }
    }

    /// Appends a header and the padding up to the data, which the caller appends next.
    #[inline]
    pub(crate) fn push_header_before_data(&self, output: &mut GatherList, header: &[u8], pdo: u8) {
        self.push_header(output, header);
        let padding = usize::from(pdo).saturating_sub(header.len() + usize::from(self.header_digest_len()));
        if padding > 0 {
            output.push_bytes(ZEROES.get(..padding).unwrap_or(&ZEROES));
        }
    }

    /// Appends a part of an operation's memory by reference, and its digest.
    #[inline]
    pub(crate) fn push_data(
        &self,
        output: &mut GatherList,
        data: &Data,
        at: usize,
        len: usize,
    ) -> Result<(), MemoryError> {
        match data {
            Data::One(segment) => output.push_memory(segment.part(at, len)?),
            other => other.for_each_part(at, len, |segment, start, len| {
                output.push_memory(segment.part(start - segment.start(), len)?);
                Ok(())
            })?,
        }
        if self.data_digest {
            output.push_bytes(&digest::of_data(data, at, len)?.to_le_bytes());
        }
        Ok(())
    }
}

/// A gathered header as the struct of its type.
#[inline]
pub(crate) fn view<T>(bytes: &[u8]) -> Result<&T, TransportError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    match T::ref_from_prefix(bytes) {
        Ok((unit, _)) => Ok(unit),
        // The header was judged before, so it is as long as its type.
        Err(_) => Err(TransportError::PduLength {
            pdu: PduType(bytes.first().copied().unwrap_or_default()),
            found: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            expected: u64::try_from(size_of::<T>()).unwrap_or(u64::MAX),
        }),
    }
}

/// Most bytes of one transfer: leaves room in PLEN for the header and digests.
pub(crate) const MAX_TRANSFER: u32 = u32::MAX - 1024;

/// Appends a terminate request with the start of the unit that it is about. Never has digests.
pub(crate) fn push_terminate(
    output: &mut GatherList,
    pdu: PduType,
    (error, information): (FatalError, u32),
    offender: &[u8],
) {
    // Not the offender's digest, nor more than its header, which may be shorter than it says.
    let hlen = offender
        .get(2)
        .copied()
        .map_or(0, usize::from)
        .clamp(size_of::<PduHeader>(), ECHO_MAX);
    let echo = offender.get(..hlen).unwrap_or(offender);
    let echo_len = u8::try_from(echo.len()).unwrap_or(0);
    output.push_bytes(TermReq::new(pdu, error, information, echo_len).as_bytes());
    output.push_bytes(echo);
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_spec::tcp::C2HData;
    use proptest::prelude::*;

    #[test]
    fn a_terminate_request_has_the_layout_of_the_specification() {
        let mut output = GatherList::new();
        push_terminate(
            &mut output,
            PduType::C2H_TERM_REQ,
            (FatalError::INVALID_HEADER_FIELD, 0x0102_0304),
            &[0xaa; 200],
        );
        let bytes = output.to_vec();
        assert_eq!(bytes.len(), 152);
        assert_eq!(bytes[..8], [3, 0, 24, 0, 152, 0, 0, 0]);
        assert_eq!(bytes[8..14], [1, 0, 4, 3, 2, 1]);
        assert_eq!(bytes[14..24], [0; 10]);
        assert_eq!(bytes[24..], [0xaa; 128]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(digests in 0_u8..4, pda_z in 0_u8..32, len in 1_u32..100_000, capsule: bool) {
            let framing = Framing::negotiated(digests, pda_z, pda_z);
            let hlen = if capsule { CAPSULE_HEADER } else { SHORT_HEADER };
            let header = framing.carrying(PduType::C2H_DATA, hlen, len, flags::LAST_PDU);
            prop_assert_eq!(header.pdo % alignment(pda_z), 0);
            let total = framing.judge(&header, hlen).unwrap();
            let payload = framing.with_data(&header).unwrap();
            prop_assert_eq!(payload.len, len);
            prop_assert_eq!(total + usize::from(payload.padding), usize::from(header.pdo));
            let mut output = GatherList::new();
            let unit = C2HData { header, ..C2HData::default() };
            framing.push_header_before_data(&mut output, unit.as_bytes(), framing.short_offset);
            prop_assert_eq!(output.remaining(), usize::from(framing.short_offset));
            prop_assert!(framing.check_header(&output.to_vec()[..24 + usize::from(framing.header_digest_len())]).is_ok());
        }
    }
}
