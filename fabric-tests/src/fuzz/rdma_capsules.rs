//! Command capsules and private data for [`rdma_controller`](super::rdma_controller): made of a fuzzer's choices, and read by rules of their
//! own.

use homi_fabric::rdma::ControllerParams;
use homi_fabric::rdma::cm::{Accepted, ConnectRequest, Granted, QueueLimits, Rejected};
use zerocopy::IntoBytes;

use super::choices::Choices;
use super::rdma_wire::{Named, plain, plain_bytes};

/// Bytes of a command.
pub(super) const ENTRY: usize = 64;

/// Which way data goes, by the low bits of an opcode (Base 2.0 §3.1.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Nowhere,
    ToController,
    ToHost,
    Both,
}

/// What a capsule says, by this file's own reading.
#[derive(Debug, Clone)]
pub(super) struct Capsule {
    pub(super) cid: u16,
    pub(super) way: Way,
    /// Its descriptors can be followed.
    pub(super) valid: bool,
    pub(super) conflict: bool,
    pub(super) ranges: Vec<Named>,
    pub(super) offered: usize,
    /// Where its data is in what followed the command.
    pub(super) inside: Option<usize>,
    /// What followed the command.
    pub(super) after: Vec<u8>,
    pub(super) buffer: u32,
}

impl Capsule {
    pub(super) fn parse(bytes: &[u8], params: &ControllerParams, buffer: u32) -> Self {
        let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
        let opcode = at(0);
        let way = match (if opcode == 0x7f { at(4) } else { opcode }) & 3 {
            0 => Way::Nowhere,
            1 => Way::ToController,
            2 => Way::ToHost,
            _ => Way::Both,
        };
        let mut capsule = Self {
            cid: u16::from_le_bytes([at(2), at(3)]),
            way,
            valid: true,
            conflict: false,
            ranges: Vec::new(),
            offered: 0,
            inside: None,
            after: bytes.get(ENTRY..).unwrap_or(&[]).to_vec(),
            buffer,
        };
        let mut sgl = [0; 16];
        sgl.copy_from_slice(bytes.get(24..40).unwrap_or(&[0; 16]));
        capsule.valid = capsule.follow(sgl, params).is_some();
        if !capsule.valid {
            capsule.ranges.clear();
            capsule.offered = 0;
            capsule.inside = None;
        }
        capsule
    }

    /// Reads its descriptor; nothing if the command cannot be executed.
    fn follow(&mut self, sgl: [u8; 16], params: &ControllerParams) -> Option<()> {
        if let Some(named) = Named::read(sgl) {
            return self.add(named);
        }
        let (at, len) = plain(sgl);
        let received = self.after.len() as u64;
        let fits = at.checked_add(len).is_some_and(|end| end <= received);
        match sgl[15] {
            0x00 | 0x01 if len == 0 => Some(()),
            0x01 if self.way != Way::ToController || !fits => None,
            0x01 => {
                self.inside = usize::try_from(at).ok();
                self.offered = usize::try_from(len).ok()?;
                Some(())
            }
            0x31 => {
                if len == 0 || len % 16 != 0 || len / 16 > u64::from(params.max_descriptors) || !fits {
                    return None;
                }
                let start = usize::try_from(at).ok()?;
                let list = self.after.clone();
                let list = list.get(start..start + usize::try_from(len).ok()?)?;
                for descriptor in list.as_chunks::<16>().0 {
                    self.add(Named::read(*descriptor)?)?;
                }
                Some(())
            }
            _ => (self.way == Way::Nowhere).then_some(()),
        }
    }

    fn add(&mut self, named: Named) -> Option<()> {
        if named.len > 0 {
            named.address.checked_add(named.len - 1)?;
            let sum = self.offered as u64 + named.len;
            self.offered = usize::try_from(u32::try_from(sum).ok()?).ok()?;
            self.ranges.push(named);
        }
        Some(())
    }

    pub(super) fn invalidates(&self) -> Option<u32> {
        let mut keys = self.ranges.iter().filter(|range| range.invalidate);
        keys.next().map(|range| range.key)
    }
}

/// A capsule as hosts build them, or nearly.
pub(super) fn capsule(choices: &mut Choices<'_>) -> Vec<u8> {
    let opcode = match choices.byte() % 8 {
        0 => 2,
        1 => 1,
        2 => 5,
        3 => 0,
        4 => 9,
        5 => 0x7f,
        6 => choices.byte(),
        _ => 1,
    };
    let (cid, kind, count) = (choices.byte() % 16, choices.byte() % 8, choices.byte());
    let mut entry = [0; ENTRY];
    entry[0] = opcode;
    entry[2] = cid;
    if opcode == 0x7f {
        entry[4] = choices.byte() % 9;
    }
    let mut after = Vec::new();
    let named = |choices: &mut Choices<'_>| {
        let len = choices.word();
        Named {
            address: match choices.byte() {
                0 => u64::MAX - u64::from(choices.word()),
                page => u64::from(page) << 16 | 0x7000_0000_0000,
            },
            key: choices.byte().into(),
            // Short ones, and ones of megabytes.
            len: if len >= 0xff00 {
                u64::from(len) << 8
            } else {
                (len % 9000).into()
            },
            invalidate: count & 0x80 != 0,
        }
    };
    let sgl = match kind {
        0 | 1 => named(choices).write(),
        2 => {
            after = choices.take(usize::from(count) * 4).to_vec();
            plain_bytes(0, u32::try_from(after.len()).unwrap_or(0), 0x01)
        }
        3 => {
            let descriptors = u32::from(count % 8);
            for _ in 0..descriptors {
                after.extend(named(choices).write());
            }
            plain_bytes(0, descriptors * 16, 0x31)
        }
        4 => {
            after = choices.take(usize::from(count)).to_vec();
            plain_bytes(choices.byte().into(), choices.byte().into(), 0x01)
        }
        5 => {
            after = choices.take(usize::from(count)).to_vec();
            plain_bytes(choices.byte().into(), choices.byte().into(), 0x31)
        }
        6 => choices.array(),
        _ => Named {
            address: 0,
            key: choices.byte().into(),
            len: 0,
            invalidate: true,
        }
        .write(),
    };
    entry[24..40].copy_from_slice(&sgl);
    [entry.as_slice(), &after].concat()
}

/// What the connection manager carries: whatever it is, what comes of it is within the limits.
pub(super) fn private(choices: &mut Choices<'_>) {
    let limits = QueueLimits {
        admin_entries: 32,
        io_entries: 2 + u16::from(choices.byte()),
        max_qid: choices.byte().into(),
        read_depth: choices.byte(),
    };
    let (asked, reads) = (choices.word(), choices.byte());
    let len = choices.below(60);
    let bytes = choices.take(len);
    match ConnectRequest::parse(bytes).and_then(|request| Ok((request, limits.grant(&request, reads)?))) {
        Ok((request, granted)) => {
            let Granted {
                qid,
                entries,
                read_depth,
            } = granted;
            assert!(bytes.len() >= 32 && bytes.starts_with(&[0, 0]));
            let most = if qid == 0 {
                limits.admin_entries
            } else {
                limits.io_entries
            };
            assert!(qid <= limits.max_qid && qid == request.qid);
            assert!((2..=most).contains(&entries) && u32::from(entries) <= request.command_entries);
            assert!((1..=reads.min(limits.read_depth)).contains(&read_depth));
            let accept = granted.to_private_data();
            assert_eq!(accept.as_bytes().get(..2), Some(&[0, 0][..]));
        }
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty());
            let reject = refusal.to_private_data();
            assert_ne!(Rejected::parse(reject.as_bytes()), Rejected::Unexplained);
        }
    }
    match Accepted::parse(bytes, asked) {
        Ok(accepted) => assert!(bytes.len() >= 4 && accepted.entries <= asked),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert!(!Rejected::parse(bytes).to_string().is_empty());
}
