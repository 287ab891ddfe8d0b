//! Both ends in every state against bytes of any kind: nothing panics, output stays bounded, and each command ends once.

use crate::wire::{DIGESTS, PLAIN, Wire, ic_req, ic_resp};
use homi_fabric::tcp::{
    ControllerConnection, ControllerEvent, ControllerParams, HostConnection, HostEvent, HostParams,
};
use homi_queue::{Command, Data, Region};
use homi_spec::sgl::Sgl;
use homi_spec::{Cqe, Sqe, Status};
use proptest::prelude::*;
use std::collections::HashSet;

const LEN: usize = 8192;

/// A unit that is nearly right: the fields that a state machine looks at, with small values in them.
#[derive(Debug, Clone)]
enum Nearly {
    Capsule {
        cid: u16,
        opcode: u8,
        sgl: u8,
        offset: u64,
        claimed: u32,
        data: usize,
    },
    H2C {
        cid: u16,
        ttag: u16,
        offset: u32,
        len: usize,
        last: bool,
    },
    C2H {
        cid: u16,
        offset: u32,
        len: usize,
        flags: u8,
    },
    R2t {
        cid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
    },
    Response {
        cid: u16,
        status: u16,
    },
    IcReq {
        hpda_z: u8,
        dgst: u8,
    },
    IcResp {
        cpda_z: u8,
        dgst: u8,
        limit: u32,
    },
    Raw(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Unit {
    nearly: Nearly,
    digests: bool,
    /// A byte of it that is changed.
    flip: Option<(usize, u8)>,
}

fn offsets() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(0), 3 => (0_u32..17).prop_map(|at| at * 512), 1 => any::<u32>()]
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![4 => (0_usize..17).prop_map(|blocks| blocks * 512), 1 => 0_usize..9000]
}

fn tags() -> impl Strategy<Value = u16> {
    prop_oneof![6 => 0_u16..6, 2 => (0_u16..6, 0_u16..4).prop_map(|(slot, count)| slot | count << 3), 1 => any::<u16>()]
}

fn units() -> impl Strategy<Value = Unit> {
    let nearly = prop_oneof![
        4 => (tags(), 0_u8..4, prop_oneof![Just(0x01_u8), Just(0x5a), any::<u8>()], 0_u64..2, offsets(), lengths())
            .prop_map(|(cid, opcode, sgl, offset, claimed, data)| Nearly::Capsule { cid, opcode, sgl, offset, claimed, data }),
        4 => (tags(), tags(), offsets(), lengths(), any::<bool>())
            .prop_map(|(cid, ttag, offset, len, last)| Nearly::H2C { cid, ttag, offset, len, last }),
        4 => (tags(), offsets(), lengths(), any::<u8>())
            .prop_map(|(cid, offset, len, flags)| Nearly::C2H { cid, offset, len, flags: flags & 0xc }),
        4 => (tags(), tags(), offsets(), offsets())
            .prop_map(|(cid, ttag, offset, len)| Nearly::R2t { cid, ttag, offset, len }),
        2 => (tags(), 0_u16..3).prop_map(|(cid, status)| Nearly::Response { cid, status }),
        1 => (0_u8..34, 0_u8..4).prop_map(|(hpda_z, dgst)| Nearly::IcReq { hpda_z, dgst }),
        1 => (0_u8..34, 0_u8..4, offsets()).prop_map(|(cpda_z, dgst, limit)| Nearly::IcResp { cpda_z, dgst, limit }),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Nearly::Raw),
    ];
    let flip = prop_oneof![8 => Just(None), 1 => (0_usize..160, any::<u8>()).prop_map(Some)];
    (nearly, any::<bool>(), flip).prop_map(|(nearly, digests, flip)| Unit {
        nearly,
        digests,
        flip,
    })
}

impl Unit {
    fn bytes(&self, wire: Wire) -> Vec<u8> {
        let wire = if self.digests { wire } else { PLAIN };
        let mut bytes = match &self.nearly {
            Nearly::Capsule {
                cid,
                opcode,
                sgl,
                offset,
                claimed,
                data,
            } => {
                let mut sqe = Sqe::new(*opcode, 1);
                sqe.cid = (*cid).into();
                let len = if *sgl == 0x01 {
                    u32::try_from(*data).unwrap()
                } else {
                    *claimed
                };
                let mut raw = Sgl::in_capsule(*offset, len);
                raw.0[15] = *sgl;
                sqe.set_sgl(raw);
                wire.capsule(sqe, &vec![3; *data])
            }
            Nearly::H2C {
                cid,
                ttag,
                offset,
                len,
                last,
            } => wire.h2c(*cid, *ttag, *offset, &vec![4; *len], *last),
            Nearly::C2H {
                cid,
                offset,
                len,
                flags,
            } => wire.c2h(*cid, *offset, &vec![5; *len], *flags),
            Nearly::R2t {
                cid,
                ttag,
                offset,
                len,
            } => wire.r2t(*cid, *ttag, *offset, *len),
            Nearly::Response { cid, status } => wire.response(*cid, Status::from_raw(*status)),
            Nearly::IcReq { hpda_z, dgst } => ic_req(*hpda_z, *dgst, 0),
            Nearly::IcResp { cpda_z, dgst, limit } => ic_resp(*cpda_z, *dgst, *limit),
            Nearly::Raw(bytes) => bytes.clone(),
        };
        if let Some((at, value)) = self.flip
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte ^= value;
        }
        bytes
    }
}

/// What the other side of a connection does between units.
#[derive(Debug, Clone)]
enum Action {
    Feed(Unit, usize),
    Answer(usize, u8),
    Submit(u8),
    Send,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let one = prop_oneof![
        5 => (units(), prop_oneof![Just(usize::MAX), 1_usize..100]).prop_map(|(unit, cut)| Action::Feed(unit, cut)),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Action::Answer(which, how)),
        2 => any::<u8>().prop_map(Action::Submit),
        1 => Just(Action::Send),
    ];
    proptest::collection::vec(one, 1..40)
}

fn attack_controller(wire: Wire, initialised: bool, connected: bool, actions: &[Action]) {
    let params = ControllerParams {
        max_in_capsule_io: 4096,
        max_h2c_data: 4096,
        max_depth: 8,
        ..ControllerParams::default()
    };
    let mut controller = ControllerConnection::new(params).unwrap();
    if initialised {
        let bytes = ic_req(0, wire.dgst(), 0);
        assert!(matches!(
            controller.advance(&mut &bytes[..]),
            Ok(Some(ControllerEvent::Ready))
        ));
    }
    if connected {
        controller.set_queue(8, true);
    }
    let mut live = Vec::new();
    let mut waiting = HashSet::new();
    let mut errors = 0;
    for action in actions {
        match action {
            Action::Feed(unit, cut) => {
                let bytes = unit.bytes(wire);
                for part in bytes.chunks((*cut).clamp(1, bytes.len().max(1))) {
                    let mut input = part;
                    loop {
                        let event = match controller.landing(1 + cut % 600) {
                            Some(segment) if cut % 2 == 0 => {
                                let len = segment.len().min(input.len());
                                segment.region().write(segment.start(), &input[..len]).unwrap();
                                input = &input[len..];
                                controller.landed(len)
                            }
                            _ => controller.advance(&mut input),
                        };
                        match event {
                            Ok(Some(ControllerEvent::Command { key, in_capsule, .. })) => {
                                assert!(in_capsule <= 8192);
                                assert!(!live.contains(&key), "a key is given once");
                                live.push(key);
                                // The first event of a capsule with data is the time to take it.
                                if cut % 3 != 0
                                    && controller
                                        .accept(key, memory(usize::try_from(in_capsule).unwrap()))
                                        .is_ok()
                                {
                                    waiting.insert(key);
                                }
                            }
                            Ok(Some(
                                ControllerEvent::DataReceived { key }
                                | ControllerEvent::DataFailed { key, .. },
                            )) => {
                                assert!(
                                    waiting.remove(&key),
                                    "data ends once, and only where it was accepted"
                                );
                                assert!(!controller.take_data(key).is_empty());
                            }
                            Ok(Some(_)) => {}
                            Ok(None) if input.is_empty() => break,
                            Ok(None) => {}
                            Err(error) => {
                                errors += 1;
                                assert!(!error.to_string().is_empty());
                            }
                        }
                    }
                }
            }
            Action::Answer(which, how) if !live.is_empty() => {
                let key = live[which % live.len()];
                let ended = match how % 4 {
                    0 => controller.respond(key, Cqe::default()).is_ok(),
                    1 => controller
                        .respond_with_data(key, memory(LEN), LEN, Cqe::default(), *how > 128)
                        .is_ok(),
                    2 => {
                        if controller
                            .accept(key, memory(512 * usize::from(how / 16)))
                            .is_ok()
                        {
                            assert!(waiting.insert(key));
                        }
                        false
                    }
                    _ => {
                        controller.cancel(key).unwrap();
                        false
                    }
                };
                if ended {
                    assert!(!waiting.contains(&key));
                    live.swap_remove(which % live.len());
                }
            }
            Action::Send => controller.output().clear(),
            Action::Answer(..) | Action::Submit(_) => {}
        }
        assert!(usize::from(controller.in_flight()) <= if connected { 8 } else { 1 });
        assert_eq!(usize::from(controller.in_flight()), live.len());
        // Each action adds at most one answer, one terminate request and one ICResp.
        assert!(controller.output().remaining() <= actions.len() * (LEN + 300));
    }
    assert!(errors <= 1, "an error is reported once");
}

fn memory(len: usize) -> Data {
    Data::whole(Region::allocate(len, 8).unwrap())
}

fn attack_host(wire: Wire, started: bool, initialised: bool, actions: &[Action]) {
    let params = HostParams {
        header_digest: wire.header_digest,
        data_digest: wire.data_digest,
        depth: 8,
        in_capsule: 512,
        max_r2t: 2,
        ..HostParams::default()
    };
    let mut host = HostConnection::new(params).unwrap();
    if started || initialised {
        host.start();
    }
    if initialised {
        let bytes = ic_resp(0, wire.dgst(), 4096);
        assert!(matches!(
            host.advance(&mut &bytes[..]),
            Ok(Some(HostEvent::Ready))
        ));
    }
    let mut live = HashSet::new();
    let mut errors = 0;
    for action in actions {
        match action {
            Action::Feed(unit, cut) => {
                let bytes = unit.bytes(wire);
                for part in bytes.chunks((*cut).clamp(1, bytes.len().max(1))) {
                    let mut input = part;
                    loop {
                        let event = match host.landing(1 + cut % 600) {
                            Some(segment) if cut % 2 == 0 => {
                                let len = segment.len().min(input.len());
                                segment.region().write(segment.start(), &input[..len]).unwrap();
                                input = &input[len..];
                                host.landed(len)
                            }
                            _ => host.advance(&mut input),
                        };
                        match event {
                            Ok(Some(HostEvent::Completed {
                                id,
                                cqe,
                                data,
                                received,
                            })) => {
                                assert!(live.remove(&id), "a command completes once");
                                assert!(usize::try_from(received).unwrap() <= data.len());
                                let short = received > 0 && usize::try_from(received).unwrap() < data.len();
                                assert!(
                                    !(short && cqe.status().is_success()),
                                    "a read is whole or has failed"
                                );
                            }
                            Ok(Some(_)) => {}
                            Ok(None) if input.is_empty() => break,
                            Ok(None) => {}
                            Err(error) => {
                                errors += 1;
                                assert!(!error.to_string().is_empty());
                            }
                        }
                    }
                }
            }
            Action::Submit(how) => {
                if let Some(slot) = host.reserve() {
                    let (command, data) = match how % 5 {
                        0 => (Command::read(1, 0, 1), memory(512)),
                        1 => (Command::read(1, 0, 16), memory(LEN)),
                        2 => (Command::write(1, 0, 16), memory(LEN)),
                        3 => (Command::write(1, 0, 1), memory(512)),
                        _ => (Command::flush(1), Data::None),
                    };
                    assert!(live.insert(host.submit(slot, command, data)));
                }
            }
            Action::Send => host.output().clear(),
            Action::Answer(..) => {}
        }
        assert_eq!(host.in_flight(), live.len());
        // A command's data is queued at most once, in at least 512-byte units unless an R2T asked for fewer.
        assert!(host.output().remaining() <= actions.len() * (LEN + 300));
    }
    assert!(errors <= 1, "an error is reported once");
    assert_eq!(host.drain().len(), live.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_controller_survives_any_host(digests: bool, initialised: bool, connected: bool, actions in actions()) {
        attack_controller(if digests { DIGESTS } else { PLAIN }, initialised, connected && initialised, &actions);
    }

    #[test]
    fn a_host_survives_any_controller(digests: bool, started: bool, initialised in prop_oneof![1 => Just(false), 4 => Just(true)], actions in actions()) {
        attack_host(if digests { DIGESTS } else { PLAIN }, started, initialised, &actions);
    }

    #[test]
    fn noise_is_survived(digests: bool, initialised: bool, noise in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1_usize..400) {
        let wire = if digests { DIGESTS } else { PLAIN };
        let unit = Unit { nearly: Nearly::Raw(noise), digests, flip: None };
        let actions = [Action::Submit(1), Action::Feed(unit, cut)];
        attack_controller(wire, initialised, initialised, &actions);
        attack_host(wire, true, initialised, &actions);
    }
}
