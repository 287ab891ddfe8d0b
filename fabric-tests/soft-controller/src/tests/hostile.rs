//! Anything that a driver can write: the model stays standing, and what it does is bounded.

use homi_spec::Sqe;
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::{Memory, Raw};
use crate::{CmbConfig, CommandMatch, Fault, FaultRule, SglSupport, SoftConfig, SriovConfig};

#[derive(Debug, Clone)]
enum Act {
    Read(u16),
    Write(u16, u32),
    Doorbell(u8, u16),
    /// An entry of any bytes in the admin queue, as far as the mask lets them.
    Admin([u8; 64]),
    /// A well-formed queue creation with these numbers.
    Create(u8, u16, u8),
    Io(u8, [u8; 64]),
    Enable,
    Disable,
    Step,
    Master(bool),
    Vectors(u8),
    Reset,
}

fn entry() -> impl Strategy<Value = [u8; 64]> {
    // Low opcodes, namespaces and addresses are where commands do something.
    (
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        0_u8..0x20,
        0_u8..4,
        any::<bool>(),
    )
        .prop_map(|(a, b, opcode, nsid, tame)| {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&a);
            bytes[32..].copy_from_slice(&b);
            bytes[0] = if tame { opcode } else { a[0] };
            if tame {
                bytes[1] &= 0x40;
                bytes[4..8].copy_from_slice(&u32::from(nsid).to_le_bytes());
                // The data pointer: an address somewhere in the first mappings.
                bytes[26..32].fill(0);
                bytes[34..40].fill(0);
                bytes[42..48].fill(0);
                bytes[48] %= 64;
                bytes[50..52].fill(0);
            }
            bytes
        })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0_u16..0x1100).prop_map(Act::Read),
        2 => (0_u16..0x80, any::<u32>()).prop_map(|(at, value)| Act::Write(at, value)),
        3 => (0_u8..10, any::<u16>()).prop_map(|(queue, value)| Act::Doorbell(queue, value % 40)),
        8 => entry().prop_map(Act::Admin),
        2 => (0_u8..4, any::<u16>(), 0_u8..4).prop_map(|(qid, size, cqid)| Act::Create(qid, size, cqid)),
        8 => (1_u8..3, entry()).prop_map(|(qid, bytes)| Act::Io(qid, bytes)),
        1 => Just(Act::Enable),
        1 => Just(Act::Disable),
        6 => Just(Act::Step),
        1 => any::<bool>().prop_map(Act::Master),
        1 => (0_u8..12).prop_map(Act::Vectors),
        1 => Just(Act::Reset),
    ]
}

fn config() -> SoftConfig {
    SoftConfig {
        sgl: SglSupport::Bytes,
        cmb: Some(CmbConfig::new(64 << 10)),
        sriov: Some(SriovConfig {
            functions: 2,
            flexible_queues: 6,
            flexible_vectors: 4,
            queues_each: 4,
            vectors_each: 3,
        }),
        shuffle: Some(3),
        faults: vec![
            FaultRule::nth(CommandMatch::io(), 5, Fault::Duplicate(2)),
            FaultRule::nth(CommandMatch::io(), 9, Fault::Slow(9)),
        ],
        ..SoftConfig::default()
    }
}

proptest! {
    #[test]
    fn nothing_brings_the_model_down(acts in proptest::collection::vec(act(), 0..120)) {
        let mut raw = Raw::new(config());
        raw.model.enable_vfs(2);
        raw.set_queues(4);
        let mut pairs = [raw.pair(1, 16), raw.pair(2, 16)];
        let _memory = Memory::new(&raw.function, 1 << 16);
        for act in acts {
            match act {
                Act::Read(at) => {
                    raw.registers.read32(at.into());
                }
                Act::Write(at, value) => raw.registers.write32(at.into(), value),
                Act::Doorbell(index, value) => raw.registers.write32(0x1000 + 4 * u64::from(index), value.into()),
                Act::Admin(bytes) => {
                    raw.admin.put_as_is(&Sqe::read_from_bytes(&bytes).unwrap());
                    raw.ring(&raw.admin);
                    raw.model.step();
                    while raw.admin.pop().is_some() {}
                    raw.ring_head(&raw.admin);
                }
                Act::Create(qid, size, cqid) => {
                    let create = homi_spec::admin::CreateIoSq {
                        qid: qid.into(),
                        size_z: size,
                        contiguous: true,
                        priority: 0,
                        cqid: cqid.into(),
                        address: raw.page.at(),
                    };
                    raw.admin.put(create.to_sqe(0));
                    raw.ring(&raw.admin);
                }
                Act::Io(qid, bytes) => {
                    let pair = &mut pairs[usize::from(qid) - 1];
                    pair.put_as_is(&Sqe::read_from_bytes(&bytes).unwrap());
                    raw.ring(pair);
                    raw.model.step();
                    while pair.pop().is_some() {}
                    raw.ring_head(pair);
                }
                Act::Enable => {
                    raw.program();
                    raw.registers.write32(0x14, super::enabled().0);
                }
                Act::Disable => raw.registers.write32(0x14, 0),
                Act::Step => {
                    raw.model.step();
                }
                Act::Master(on) => raw.function.set_bus_master(on).unwrap(),
                Act::Vectors(count) => raw.vectors = raw.function.enable_vectors(count.into()).unwrap_or_default(),
                Act::Reset => raw.function.reset().unwrap(),
            }
        }
        prop_assert!(raw.model.run_until_idle() < 10_000);
    }
}
