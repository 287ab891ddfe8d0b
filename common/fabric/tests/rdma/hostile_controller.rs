//! The host end against controllers that break the protocol, and applications that give it what cannot be sent.

use homi_fabric::rdma::{
    HostConnection, HostEvent, HostParams, Operation, ParameterError, RemoteMemory, SubmitError,
    TransportError, WorkId,
};
use homi_queue::{Command, CommandId, Data, Region, RemoteAddress, RemoteKey, Segment};
use homi_spec::{Cqe, Sgl, SglDescriptor, Sqe, Status};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

fn params() -> HostParams {
    HostParams {
        depth: 4,
        in_capsule: 512,
        max_descriptors: 3,
        send_queue: 8,
        max_pieces: 3,
    }
}

fn connected() -> HostConnection {
    let mut end = HostConnection::new(params()).unwrap();
    end.established();
    end
}

const KEY: RemoteKey = RemoteKey(0x77);

/// A key for everything, whose address is the offset in the region.
fn everywhere(segment: &Segment) -> Option<RemoteMemory> {
    Some(RemoteMemory {
        address: RemoteAddress(u64::try_from(segment.start()).unwrap()),
        key: KEY,
        invalidate: true,
    })
}

fn nowhere(_: &Segment) -> Option<RemoteMemory> {
    None
}

fn memory(len: usize) -> Data {
    Data::whole(Region::allocate(len, 8).unwrap())
}

fn submit(end: &mut HostConnection, command: Command, data: Data) -> CommandId {
    let slot = end.reserve().unwrap();
    end.submit(slot, command, data, &everywhere)
}

/// Posts everything: the ids, and each capsule with its payload's length.
fn post(end: &mut HostConnection) -> Vec<(WorkId, bool, Vec<u8>, usize)> {
    let mut posted = Vec::new();
    while let Some(work) = end.poll_work() {
        let Operation::Send(send) = &work.operation else {
            panic!("{work:?}")
        };
        assert_eq!(send.invalidate, None);
        let bytes = [send.entry, send.list].concat();
        posted.push((work.id, work.signaled, bytes, send.payload.len()));
    }
    posted
}

fn answer(id: CommandId) -> Vec<u8> {
    Cqe::new(id.0).as_bytes().to_vec()
}

fn sqe(capsule: &[u8]) -> Sqe {
    Sqe::read_from_prefix(capsule).unwrap().0
}

#[test]
fn parameters_are_checked() {
    let wrong = |change: fn(&mut HostParams)| {
        let mut params = params();
        change(&mut params);
        HostConnection::new(params).unwrap_err()
    };
    assert!(matches!(
        wrong(|params| params.depth = 5000),
        ParameterError::Depth { depth: 5000, .. }
    ));
    assert!(matches!(
        wrong(|params| params.max_descriptors = 257),
        ParameterError::Descriptors { found: 257, .. }
    ));
    assert_eq!(
        wrong(|params| params.send_queue = 0),
        ParameterError::SendQueue(0)
    );
    assert_eq!(wrong(|params| params.max_pieces = 1), ParameterError::Pieces(1));
}

#[test]
fn receives_are_posted_for_every_command_that_can_be_in_flight() {
    let mut end = connected();
    assert_eq!((end.take_receives(), end.take_receives()), (4, 0));
    let id = submit(&mut end, Command::flush(1), Data::None);
    post(&mut end);
    end.received(&answer(id), None).unwrap();
    assert_eq!(end.take_receives(), 1);
}

#[test]
fn capsules_say_where_the_data_is() {
    let mut end = connected();
    submit(&mut end, Command::flush(1), Data::None);
    submit(&mut end, Command::read(1, 0, 1), memory(512));
    submit(&mut end, Command::write(1, 0, 1), memory(512));
    submit(&mut end, Command::write(1, 0, 2), memory(1024));
    let posted = post(&mut end);
    let sgls: Vec<SglDescriptor> = posted
        .iter()
        .map(|(_, _, bytes, _)| sqe(bytes).sgl().parse())
        .collect();
    let keyed = |length| SglDescriptor::Keyed {
        address: 0,
        length,
        key: KEY.0,
        invalidate: true,
    };
    let null = SglDescriptor::Keyed {
        address: 0,
        length: 0,
        key: 0,
        invalidate: false,
    };
    let in_capsule = SglDescriptor::InCapsule {
        offset: 0,
        length: 512,
    };
    assert_eq!(sgls, [null, keyed(512), in_capsule, keyed(1024)]);
    let lens: Vec<(usize, usize)> = posted
        .iter()
        .map(|(_, _, bytes, payload)| (bytes.len(), *payload))
        .collect();
    assert_eq!(lens, [(64, 0), (64, 0), (64, 512), (64, 0)]);
}

#[test]
fn memory_in_parts_is_a_list_in_the_capsule_and_neighbours_are_one() {
    let mut end = connected();
    let region = Region::allocate(8192, 8).unwrap();
    let part = |start: usize, len: usize| region.segment(start..start + len).unwrap();
    let apart = Data::List(vec![part(0, 512), part(1024, 256), part(1280, 256)]);
    submit(&mut end, Command::read(1, 0, 2), apart);
    let posted = post(&mut end);
    let bytes = &posted[0].2;
    let mut expected = Sgl::data_block(0, 32);
    expected.0[15] = 0x31;
    assert_eq!(sqe(bytes).sgl(), expected);
    let list = [
        Sgl::keyed(0, 512, KEY.0, true).unwrap(),
        Sgl::keyed(1024, 512, KEY.0, true).unwrap(),
    ];
    assert_eq!(bytes[64..], *list.as_bytes());
}

#[test]
fn memory_under_different_keys_is_never_one_descriptor() {
    let mut end = connected();
    let region = Region::allocate(1024, 8).unwrap();
    let parts = [0, 512].map(|start| region.segment(start..start + 512).unwrap());
    let slot = end.reserve().unwrap();
    // Side by side in the address space, but registered apart.
    let keys = |segment: &Segment| {
        everywhere(segment).map(|memory| RemoteMemory {
            key: RemoteKey(if segment.start() == 0 { 1 } else { 2 }),
            ..memory
        })
    };
    end.submit(slot, Command::read(1, 0, 2), Data::List(parts.to_vec()), &keys);
    let posted = post(&mut end);
    let list = [
        Sgl::keyed(0, 512, 1, true).unwrap(),
        Sgl::keyed(512, 512, 2, true).unwrap(),
    ];
    assert_eq!(posted[0].2[64..], *list.as_bytes());
}

#[test]
fn what_cannot_be_sent_is_refused_with_its_memory() {
    let mut end = connected();
    let mut refused = |command: Command, data: Data, registered: bool| {
        let len = data.len();
        let slot = end.reserve().unwrap();
        if registered {
            end.submit(slot, command, data, &everywhere);
        } else {
            end.submit(slot, command, data, &nowhere);
        }
        match end.poll_event() {
            Some(HostEvent::Refused { reason, data, .. }) => {
                assert_eq!(data.len(), len);
                assert!(end.poll_work().is_none() && end.in_flight() == 0);
                reason
            }
            other => panic!("{other:?}"),
        }
    };
    let read = Command::read(1, 0, 1);
    assert_eq!(
        refused(read, Data::Anywhere { len: 512 }, true),
        SubmitError::NoMemory
    );
    assert_eq!(refused(read, memory(512), false), SubmitError::Unregistered(512));
    assert_eq!(
        refused(Command::flush(1), memory(512), true),
        SubmitError::Direction
    );
    let region = Region::allocate(8192, 8).unwrap();
    let parts = (0..4).map(|at| region.segment(at * 1000..at * 1000 + 128).unwrap());
    let reason = refused(read, Data::List(parts.collect()), true);
    assert_eq!(reason, SubmitError::TooManyDescriptors { max: 3 });
    assert_eq!(reason.status(), Status::SGL_INVALID_COUNT);
    // In-capsule writes need no registration.
    let slot = end.reserve().unwrap();
    end.submit(slot, Command::write(1, 0, 1), memory(512), &nowhere);
    assert_eq!(post(&mut end)[0].3, 512);
}

#[test]
fn a_registration_that_ends_early_is_refused() {
    let mut end = connected();
    let last = |_: &Segment| {
        Some(RemoteMemory {
            address: RemoteAddress(u64::MAX - 10),
            key: KEY,
            invalidate: false,
        })
    };
    let slot = end.reserve().unwrap();
    end.submit(slot, Command::read(1, 0, 1), memory(512), &last);
    assert!(matches!(
        end.poll_event(),
        Some(HostEvent::Refused {
            reason: SubmitError::Address { len: 512, .. },
            ..
        })
    ));
}

#[test]
fn responses_of_the_wrong_length() {
    for len in [0, 15, 17, 64] {
        let mut end = connected();
        let id = submit(&mut end, Command::flush(1), Data::None);
        post(&mut end);
        let mut bytes = answer(id);
        bytes.resize(len, 0);
        let expected = TransportError::ResponseLength {
            found: len,
            expected: 16,
        };
        assert_eq!(end.received(&bytes, None), Err(expected));
        assert!(end.failed() && end.poll_event().is_none());
    }
}

#[test]
fn responses_to_nothing_to_what_was_not_sent_and_twice() {
    let mut end = connected();
    let stranger = CommandId(0xffff);
    assert_eq!(
        end.received(&answer(stranger), None),
        Err(TransportError::UnknownCommand { id: stranger })
    );

    let mut end = connected();
    let id = submit(&mut end, Command::flush(1), Data::None);
    assert_eq!(
        end.received(&answer(id), None),
        Err(TransportError::Premature { id })
    );

    let mut end = connected();
    let id = submit(&mut end, Command::flush(1), Data::None);
    post(&mut end);
    end.received(&answer(id), None).unwrap();
    assert!(matches!(end.poll_event(), Some(HostEvent::Completed { .. })));
    assert_eq!(
        end.received(&answer(id), None),
        Err(TransportError::UnknownCommand { id })
    );

    // Doubled while the send of its data is still outstanding.
    let mut end = connected();
    let id = submit(&mut end, Command::write(1, 0, 1), memory(512));
    post(&mut end);
    end.received(&answer(id), None).unwrap();
    assert!(end.poll_event().is_none());
    assert_eq!(
        end.received(&answer(id), None),
        Err(TransportError::UnknownCommand { id })
    );
    end.stopped();
    assert_eq!(end.drain().unwrap().len(), 1);
}

#[test]
fn data_in_a_capsule_comes_back_when_its_send_is_over_too() {
    let mut end = connected();
    let id = submit(&mut end, Command::write(1, 0, 1), memory(512));
    let posted = post(&mut end);
    let (work, signaled, ..) = posted[0];
    assert!(signaled);
    end.received(&answer(id), None).unwrap();
    assert!(end.poll_event().is_none(), "the adapter may send it again");
    end.completed(work).unwrap();
    assert!(matches!(
        end.poll_event(),
        Some(HostEvent::Completed { id: ended, data, .. }) if ended == id && data.len() == 512
    ));
    assert_eq!(end.completed(work), Err(TransportError::UnknownWork { id: work }));
}

#[test]
fn the_head_must_be_in_the_queue_where_it_means_something() {
    for (entries, head, fine) in [
        (None, 0xffff, true),
        (Some(5), 4, true),
        (Some(5), 5, false),
        (Some(65536), 0xffff, true),
    ] {
        let mut end = connected();
        end.set_flow_control(entries);
        let id = submit(&mut end, Command::flush(1), Data::None);
        post(&mut end);
        let mut cqe = Cqe::new(id.0);
        cqe.sq_head = head.into();
        let result = end.received(cqe.as_bytes(), None);
        assert_eq!(result.is_ok(), fine);
        if let Err(error) = result {
            assert_eq!(error, TransportError::QueueHead { id, head, entries: 5 });
        }
    }
}

#[test]
fn only_keys_of_the_command_may_be_invalidated() {
    let long_lived = |_: &Segment| {
        Some(RemoteMemory {
            address: RemoteAddress(0),
            key: KEY,
            invalidate: false,
        })
    };
    // Another key than the command's.
    let mut end = connected();
    let id = submit(&mut end, Command::read(1, 0, 1), memory(512));
    post(&mut end);
    let key = RemoteKey(1);
    assert_eq!(
        end.received(&answer(id), Some(key)),
        Err(TransportError::ForeignKey { id, key })
    );
    // A key that was not given away.
    let mut end = connected();
    let slot = end.reserve().unwrap();
    let id = end.submit(slot, Command::read(1, 0, 1), memory(512), &long_lived);
    post(&mut end);
    assert_eq!(
        end.received(&answer(id), Some(KEY)),
        Err(TransportError::ForeignKey { id, key: KEY })
    );
    // A command without keys, in a slot whose last command had one.
    let mut end = connected();
    let id = submit(&mut end, Command::read(1, 0, 1), memory(512));
    post(&mut end);
    end.received(&answer(id), Some(KEY)).unwrap();
    assert!(matches!(
        end.poll_event(),
        Some(HostEvent::Completed {
            invalidated: Some(KEY),
            ..
        })
    ));
    let id = submit(&mut end, Command::flush(1), Data::None);
    post(&mut end);
    assert_eq!(
        end.received(&answer(id), Some(KEY)),
        Err(TransportError::ForeignKey { id, key: KEY })
    );
}

#[test]
fn commands_come_back_only_when_the_queue_pair_is_still() {
    let mut end = connected();
    for _ in 0..2 {
        submit(&mut end, Command::read(1, 0, 1), memory(512));
    }
    post(&mut end);
    submit(&mut end, Command::read(1, 0, 1), memory(512));
    assert!(end.drain().is_err());
    end.lost();
    // The controller may still be writing, although nothing of this end's is outstanding.
    assert!(end.drain().is_err());
    assert!(end.poll_work().is_none());
    let late = submit(&mut end, Command::read(1, 0, 1), memory(512));
    end.received(&answer(late), None).unwrap();
    end.stopped();
    let undelivered = end.drain().unwrap();
    assert_eq!(undelivered.len(), 4);
    for lost in undelivered {
        assert_eq!((lost.command, lost.data.len()), (Command::read(1, 0, 1), 512));
    }
    assert!(end.drain().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Any responses at all: each command ends once, by its completion or in the drain.
    #[test]
    fn any_response_is_survived(
        steps in proptest::collection::vec(
            (0_u8..8, any::<usize>(), proptest::collection::vec(any::<u8>(), 0..20), any::<bool>()),
            1..80,
        ),
    ) {
        let mut end = connected();
        end.set_flow_control(Some(5));
        let mut live = Vec::new();
        let mut works = Vec::new();
        let mut ended = 0;
        let mut submitted = 0;
        for (kind, pick, noise, key) in steps {
            match kind {
                0 | 1 => {
                    if let Some(slot) = end.reserve() {
                        let command = if key { Command::read(1, 0, 1) } else { Command::write(1, 0, 1) };
                        live.push(end.submit(slot, command, memory(512), &everywhere));
                        submitted += 1;
                    }
                }
                2 | 3 => works.extend(post(&mut end).into_iter().filter(|work| work.1).map(|work| work.0)),
                4 | 5 if !live.is_empty() => {
                    let id = live[pick % live.len()];
                    let _ = end.received(&answer(id), key.then_some(KEY));
                }
                6 if !works.is_empty() => {
                    let _ = end.completed(works.remove(0));
                }
                _ => {
                    let _ = end.received(&noise, key.then_some(KEY));
                }
            }
            while let Some(event) = end.poll_event() {
                let HostEvent::Completed { id, data, .. } = event else { panic!("{event:?}") };
                prop_assert_eq!(data.len(), 512);
                let position = live.iter().position(|other| *other == id);
                live.swap_remove(position.expect("once"));
                ended += 1;
            }
        }
        end.stopped();
        let undelivered = end.drain().unwrap();
        prop_assert_eq!(ended + undelivered.len(), submitted);
        for lost in undelivered {
            prop_assert!(live.contains(&lost.id) && lost.data.len() == 512);
        }
    }
}
