//! Protocol data units written and judged without the code under test: the fuzzers' own idea of what is valid.

use std::sync::LazyLock;

use homi_spec::tcp::{PduHeader, PduType, TermReq, flags};
use homi_spec::{Cqe, Sqe};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a digest.
pub(super) const DIGEST: usize = 4;

/// What was negotiated for one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Alignment of data in bytes.
    pub(super) alignment: usize,
}

impl Layout {
    pub(super) const PLAIN: Self = Self {
        header_digest: false,
        data_digest: false,
        alignment: 4,
    };

    pub(super) fn new(header_digest: bool, data_digest: bool, pda_z: u8) -> Self {
        Self {
            header_digest,
            data_digest,
            alignment: homi_spec::tcp::alignment(pda_z),
        }
    }
}

static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|byte| {
        let byte = u32::try_from(byte).unwrap_or(0);
        (0..8).fold(byte, |crc, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78))
    })
});

/// CRC-32C, one byte at a time.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    let table = &*TABLE;
    let step = |crc: u32, byte: &u8| {
        let index = usize::from(crc.to_le_bytes()[0] ^ byte);
        (crc >> 8) ^ table.get(index).copied().unwrap_or(0)
    };
    !bytes.iter().fold(!0, step)
}

/// One unit that an end sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit<'a> {
    pub(super) header: PduHeader,
    head: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl Unit<'_> {
    pub(super) fn kind(&self) -> PduType {
        self.header.pdu_type
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.header.has(flag)
    }

    /// The whole header as the struct of its type.
    pub(super) fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> T {
        T::read_from_bytes(self.head)
            .map_err(|_| ())
            .expect("a header has the size of its type")
    }
}

fn field(bytes: &[u8]) -> u32 {
    let mut word = [0; DIGEST];
    word.copy_from_slice(bytes);
    u32::from_le_bytes(word)
}

/// Splits what an end sent into units, each of which must be valid; without a layout, their own flags say whether they have digests.
pub(super) fn split(bytes: &[u8], layout: Option<Layout>) -> Vec<Unit<'_>> {
    let mut units = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (header, _) = PduHeader::read_from_prefix(rest)
            .map_err(|_| rest.len())
            .expect("what is sent is whole units");
        let kind = header.pdu_type;
        let hlen = kind.hlen().expect("what is sent has a known type");
        assert_eq!(header.hlen, hlen, "{kind}");
        let plen = usize::try_from(header.plen.get()).expect("fits");
        assert!(
            (usize::from(hlen)..=rest.len()).contains(&plen),
            "{kind} of {plen} bytes"
        );
        let (unit, after) = rest.split_at(plen);
        rest = after;
        units.push(judge(header, unit, layout));
    }
    units
}

fn judge<'a>(header: PduHeader, unit: &'a [u8], layout: Option<Layout>) -> Unit<'a> {
    let kind = header.pdu_type;
    let (hdgst, ddgst) = (header.has(flags::HDGST), header.has(flags::DDGST));
    let (head, after) = unit.split_at(usize::from(header.hlen));
    let done = |payload| Unit {
        header,
        head,
        payload,
    };
    if matches!(kind, PduType::C2H_TERM_REQ | PduType::H2C_TERM_REQ) {
        assert_eq!((header.flags, header.pdo), (0, 0));
        assert!(
            after.len() <= 128,
            "a terminate request repeats at most 128 bytes"
        );
        let request: TermReq = done(after).read();
        assert_eq!(request.reserved14, [0; 10]);
        assert!((1..=6).contains(&request.fes.get()), "{}", request.fatal_error());
        return done(after);
    }
    if matches!(kind, PduType::IC_REQ | PduType::IC_RESP) {
        assert_eq!((header.flags, header.pdo, after.len()), (0, 0, 0));
        return done(&[]);
    }
    if let Some(layout) = layout {
        assert_eq!(hdgst, layout.header_digest, "{kind}: header digest as negotiated");
    }
    let mut after = after;
    if hdgst {
        let (digest, rest) = after.split_at(DIGEST);
        assert_eq!(field(digest), crc(head), "{kind}: header digest");
        after = rest;
    }
    if header.pdo == 0 {
        assert!(
            after.is_empty() && !ddgst,
            "{kind}: nothing follows a header without data"
        );
        return done(&[]);
    }
    let padding = usize::from(header.pdo)
        .checked_sub(unit.len() - after.len())
        .expect("data begins behind the header");
    let (padding, mut payload) = after.split_at(padding);
    assert!(padding.iter().all(|byte| *byte == 0), "{kind}: padding is zero");
    if let Some(layout) = layout {
        assert_eq!(ddgst, layout.data_digest, "{kind}: data digest as negotiated");
        assert_eq!(
            usize::from(header.pdo) % layout.alignment,
            0,
            "{kind}: PDO {}",
            header.pdo
        );
    }
    if ddgst {
        let (data, digest) = payload.split_at(payload.len() - DIGEST);
        assert_eq!(field(digest), crc(data), "{kind}: data digest");
        payload = data;
    }
    assert!(!payload.is_empty(), "{kind}: data of no bytes is not sent");
    done(payload)
}

/// A valid unit: a header struct, whose common header is filled in here, and its data.
pub(super) fn unit<T>(layout: Layout, kind: PduType, flag: u8, header: T, payload: &[u8]) -> Vec<u8>
where
    T: IntoBytes + Immutable,
{
    let mut bytes = header.as_bytes().to_vec();
    let hlen = bytes.len();
    let mut pdo = 0;
    let mut flags = flag;
    let bare = matches!(
        kind,
        PduType::IC_REQ | PduType::IC_RESP | PduType::C2H_TERM_REQ | PduType::H2C_TERM_REQ
    );
    let hdgst = layout.header_digest && !bare;
    let ddgst = layout.data_digest && !payload.is_empty();
    if hdgst {
        flags |= flags::HDGST;
        bytes.extend([0; DIGEST]);
    }
    if !payload.is_empty() {
        pdo = bytes.len().next_multiple_of(layout.alignment);
        bytes.resize(pdo, 0);
        bytes.extend_from_slice(payload);
        if ddgst {
            flags |= flags::DDGST;
            bytes.extend(crc(payload).to_le_bytes());
        }
    }
    let common = PduHeader {
        pdu_type: kind,
        flags,
        hlen: u8::try_from(hlen).unwrap_or(u8::MAX),
        pdo: u8::try_from(pdo).unwrap_or(u8::MAX),
        plen: u32::try_from(bytes.len()).unwrap_or(u32::MAX).into(),
    };
    for (to, from) in bytes.iter_mut().zip(common.as_bytes()) {
        *to = *from;
    }
    if hdgst {
        let digest = crc(bytes.get(..hlen).unwrap_or(&[]));
        for (to, from) in bytes.iter_mut().skip(hlen).zip(digest.to_le_bytes()) {
            *to = from;
        }
    }
    bytes
}

/// Makes the digests of every unit in a stream right, as far as its lengths make sense: fuzzers cannot guess them.
pub(super) fn repair(bytes: &mut [u8]) {
    let mut rest = bytes;
    while let Ok((header, _)) = PduHeader::read_from_prefix(rest) {
        let plen = usize::try_from(header.plen.get()).unwrap_or(usize::MAX);
        if plen < size_of::<PduHeader>() || plen > rest.len() {
            return;
        }
        let (unit, after) = rest.split_at_mut(plen);
        rest = after;
        let hlen = usize::from(header.hlen);
        if header.has(flags::HDGST)
            && let Some((head, tail)) = unit.split_at_mut_checked(hlen)
            && let Some(digest) = tail.first_chunk_mut::<DIGEST>()
        {
            *digest = crc(head).to_le_bytes();
        }
        if header.has(flags::DDGST)
            && let Some((data, digest)) = unit.split_last_chunk_mut::<DIGEST>()
            && let Some(payload) = data.get(usize::from(header.pdo)..)
        {
            *digest = crc(payload).to_le_bytes();
        }
    }
}

/// A command capsule.
pub(super) fn capsule(layout: Layout, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
    let header = homi_spec::tcp::CapsuleCmd {
        sqe: *sqe,
        ..Default::default()
    };
    unit(layout, PduType::CAPSULE_CMD, 0, header, data)
}

/// A response capsule.
pub(super) fn response(layout: Layout, cqe: Cqe) -> Vec<u8> {
    let header = homi_spec::tcp::CapsuleResp {
        cqe,
        ..Default::default()
    };
    unit(layout, PduType::CAPSULE_RESP, 0, header, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_spec::tcp::C2HData;

    #[test]
    fn the_digest_is_crc_32c() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_judged_valid_and_repair_keeps_it() {
        for (header_digest, data_digest, pda_z) in [(false, false, 0), (true, false, 3), (true, true, 31)] {
            let layout = Layout::new(header_digest, data_digest, pda_z);
            let mut bytes = unit(
                layout,
                PduType::C2H_DATA,
                flags::LAST_PDU,
                C2HData::default(),
                &[7; 100],
            );
            bytes.extend(response(layout, Cqe::new(3)));
            let before = bytes.clone();
            repair(&mut bytes);
            assert_eq!(bytes, before);
            let units = split(&bytes, Some(layout));
            assert_eq!(units.len(), 2);
            assert_eq!(units[0].payload, [7; 100]);
            assert!(units[0].has(flags::LAST_PDU));
        }
    }
}
