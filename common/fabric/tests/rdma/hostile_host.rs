//! The controller end against hosts that break the protocol: the connection fails or the command does, nothing is read or
//! written that the command did not name, and every buffer comes back once.

use homi_fabric::rdma::{
    AcceptError, Cancel, ControllerConnection, ControllerEvent, ControllerParams, Operation, ParameterError,
    ReceiveBuffer, RespondError, Returned, TransportError, WorkId,
};
use homi_queue::{Data, Region, RemoteAddress, RemoteKey};
use homi_spec::command::{FabricsOpcode, NvmOpcode};
use homi_spec::{Cqe, Sgl, Sqe, Status};
use proptest::prelude::*;
use zerocopy::IntoBytes;

const CAPSULE: usize = 1024;

fn params() -> ControllerParams {
    ControllerParams {
        max_in_capsule: 512,
        max_descriptors: 2,
        max_depth: 4,
        send_queue: 8,
        read_depth: 2,
        ..ControllerParams::default()
    }
}

struct Host {
    end: ControllerConnection,
    next: u32,
}

impl Host {
    fn connected() -> Self {
        let mut end = ControllerConnection::new(params()).unwrap();
        end.established().unwrap();
        end.set_queue(4);
        Self { end, next: 0 }
    }

    /// A receive buffer with this capsule in it, and an earlier one's secrets behind.
    fn buffer(&mut self, capsule: &[u8]) -> ReceiveBuffer {
        self.next += 1;
        let region = Region::from_vec(vec![0x5e; 64 + CAPSULE]);
        region.write(0, capsule).unwrap();
        ReceiveBuffer {
            id: self.next,
            entry: region.segment(0..64).unwrap(),
            data: Some(region.segment(64..64 + CAPSULE).unwrap()),
        }
    }

    fn send(&mut self, sqe: &Sqe, data: &[u8]) -> Result<(), TransportError> {
        let capsule = [sqe.as_bytes(), data].concat();
        let buffer = self.buffer(&capsule);
        self.end.received(buffer, capsule.len())
    }

    fn command(
        &mut self,
        sqe: &Sqe,
        data: &[u8],
    ) -> (homi_fabric::rdma::CommandKey, Sqe, u32, Option<Status>) {
        self.send(sqe, data).unwrap();
        match self.end.poll_event() {
            Some(ControllerEvent::Command {
                key,
                sqe,
                in_capsule,
                fault,
            }) => (key, sqe, in_capsule, fault),
            other => panic!("{other:?}"),
        }
    }

    fn returned(&mut self) -> (Vec<u32>, Vec<usize>) {
        let (mut receives, mut data) = (Vec::new(), Vec::new());
        while let Some(returned) = self.end.poll_returned() {
            match returned {
                Returned::Receive(buffer) => receives.push(buffer.id),
                Returned::Data(memory) => data.push(memory.len()),
            }
        }
        (receives, data)
    }
}

fn command(opcode: NvmOpcode, cid: u16, sgl: Sgl) -> Sqe {
    let mut sqe = Sqe::new(opcode.raw(), 1);
    sqe.cid = cid.into();
    sqe.set_sgl(sgl);
    sqe
}

fn keyed(len: u32) -> Sgl {
    Sgl::keyed(0x4000, len, 9, false).unwrap()
}

fn memory(len: usize) -> Data {
    Data::whole(Region::allocate(len, 8).unwrap())
}

#[test]
fn parameters_are_checked() {
    let wrong = |change: fn(&mut ControllerParams)| {
        let mut params = params();
        change(&mut params);
        ControllerConnection::new(params).unwrap_err()
    };
    assert_eq!(
        wrong(|params| params.max_in_capsule = 8),
        ParameterError::InCapsule(8)
    );
    assert_eq!(wrong(|params| params.read_depth = 0), ParameterError::ReadDepth);
    assert_eq!(
        wrong(|params| params.send_queue = 1),
        ParameterError::SendQueue(1)
    );
    assert_eq!(wrong(|params| params.max_pieces = 1), ParameterError::Pieces(1));
    assert_eq!(
        wrong(|params| params.max_read_pieces = 0),
        ParameterError::Pieces(0)
    );
    assert!(matches!(
        wrong(|params| params.max_depth = 0),
        ParameterError::Depth { depth: 0, .. }
    ));
    assert!(matches!(
        wrong(|params| params.max_descriptors = 0),
        ParameterError::Descriptors { found: 0, .. }
    ));
}

#[test]
fn capsules_too_short_or_too_long_end_the_queue() {
    for len in [0, 1, 63] {
        let mut host = Host::connected();
        let buffer = host.buffer(&[0; 64]);
        assert_eq!(
            host.end.received(buffer, len),
            Err(TransportError::CapsuleTooShort {
                found: len,
                minimum: 64
            })
        );
        assert!(host.end.failed() && host.end.poll_event().is_none());
        assert_eq!(host.returned(), (vec![1], vec![]));
        assert!(host.end.is_finished());
    }
    for len in [64 + 513, 64 + CAPSULE, usize::MAX] {
        let mut host = Host::connected();
        let buffer = host.buffer(&[0; 64]);
        let error = host.end.received(buffer, len).unwrap_err();
        assert_eq!(
            error,
            TransportError::CapsuleTooLong {
                found: len,
                limit: 576
            }
        );
        assert_eq!(host.returned(), (vec![1], vec![]));
    }
    // A buffer without room for data takes none, whatever is announced.
    let mut host = Host::connected();
    let mut buffer = host.buffer(&[0; 64]);
    buffer.data = None;
    let error = host.end.received(buffer, 65).unwrap_err();
    assert_eq!(error, TransportError::CapsuleTooLong { found: 65, limit: 64 });
}

#[test]
fn commands_before_connect_and_beyond_the_queue() {
    let mut host = Host::connected();
    host.end = ControllerConnection::new(params()).unwrap();
    host.end.established().unwrap();
    host.command(&command(NvmOpcode::READ, 1, keyed(512)), &[]);
    assert_eq!(
        host.send(&command(NvmOpcode::READ, 2, keyed(512)), &[]),
        Err(TransportError::CommandLimit { limit: 1 })
    );

    let mut host = Host::connected();
    for cid in 0..4 {
        host.command(&command(NvmOpcode::READ, cid, keyed(512)), &[]);
    }
    assert_eq!(
        host.send(&command(NvmOpcode::READ, 9, keyed(512)), &[]),
        Err(TransportError::CommandLimit { limit: 4 })
    );
    // Answered at this end is not enough: the host has the entry back when the response is sent.
    let mut host = Host::connected();
    for cid in 0..4 {
        let (key, ..) = host.command(&command(NvmOpcode::FLUSH, cid, keyed(0)), &[]);
        host.end.respond(key, Cqe::default()).unwrap();
    }
    assert!(host.end.poll_work().is_some());
    host.command(&command(NvmOpcode::FLUSH, 9, keyed(0)), &[]);
}

#[test]
fn too_many_commands_before_the_connection_is_established() {
    let mut host = Host::connected();
    host.end = ControllerConnection::new(params()).unwrap();
    let sqe = command(NvmOpcode::READ, 1, keyed(512));
    host.send(&sqe, &[]).unwrap();
    assert_eq!(
        host.send(&sqe, &[]),
        Err(TransportError::CommandLimit { limit: 1 })
    );
    assert_eq!(host.returned(), (vec![1, 2], vec![]));
    host.end.established().unwrap();
    assert!(host.end.poll_event().is_none() && host.end.is_finished());
}

#[test]
fn a_bad_capsule_before_the_connection_is_established() {
    let mut host = Host::connected();
    host.end = ControllerConnection::new(params()).unwrap();
    let buffer = host.buffer(&[0; 64]);
    host.end.received(buffer, 7).unwrap();
    assert!(matches!(
        host.end.established(),
        Err(TransportError::CapsuleTooShort { found: 7, .. })
    ));
    assert_eq!(host.returned().0, [1]);
}

#[test]
fn sends_after_the_end_are_discarded() {
    let mut host = Host::connected();
    host.end.lost();
    host.send(&command(NvmOpcode::READ, 1, keyed(512)), &[]).unwrap();
    assert!(host.end.poll_event().is_none());
    assert_eq!(host.returned(), (vec![1], vec![]));
    assert_eq!(host.end.in_flight(), 0);
}

#[test]
fn data_in_the_capsule_that_did_not_come_is_not_an_earlier_capsules() {
    let mut host = Host::connected();
    let (key, _, in_capsule, fault) =
        host.command(&command(NvmOpcode::WRITE, 1, Sgl::in_capsule(0, 512)), &[1; 511]);
    assert_eq!(fault.map(Status::code), Some(Status::SGL_OFFSET_INVALID));
    assert_eq!(in_capsule, 0);
    assert!(host.end.take_data(key).is_empty());
    let (.., fault) = host.command(
        &command(NvmOpcode::WRITE, 2, Sgl::in_capsule(u64::MAX, 2)),
        &[1; 64],
    );
    assert_eq!(fault.map(Status::code), Some(Status::SGL_OFFSET_INVALID));
    // An SGL list is held to the same.
    let mut list = Sgl::data_block(0, 32);
    list.0[15] = 0x31;
    let (.., fault) = host.command(&command(NvmOpcode::WRITE, 3, list), keyed(512).as_bytes());
    assert_eq!(fault.map(Status::code), Some(Status::SGL_OFFSET_INVALID));
    // What came is taken from where it is.
    let (key, _, in_capsule, fault) =
        host.command(&command(NvmOpcode::WRITE, 4, Sgl::in_capsule(3, 5)), &[7; 8]);
    assert_eq!((in_capsule, fault), (5, None));
    let data = host.end.take_data(key);
    let mut bytes = [0; 5];
    data.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 5]);
    // Its buffer stays with the command until that is answered.
    assert_eq!(host.returned().0, [1, 2, 3]);
    host.end.respond(key, Cqe::default()).unwrap();
    assert_eq!(host.returned().0, [4]);
}

#[test]
fn a_list_has_no_more_descriptors_than_announced() {
    let list = |count: u32| {
        let mut list = Sgl::data_block(0, 16 * count);
        list.0[15] = 0x31;
        list
    };
    let descriptors = [keyed(512).0; 3].concat();
    let mut host = Host::connected();
    let (key, sqe, _, fault) = host.command(&command(NvmOpcode::WRITE, 1, list(2)), &descriptors);
    assert_eq!((fault, sqe.sgl()), (None, Sgl::transport(1024)));
    host.end.accept(key, memory(1024)).unwrap();
    let (.., fault) = host.command(&command(NvmOpcode::WRITE, 2, list(3)), &descriptors);
    assert_eq!(fault.map(Status::code), Some(Status::SGL_INVALID_COUNT));
}

#[test]
fn a_doubled_command_id_is_a_conflict_and_harms_nobody() {
    let mut host = Host::connected();
    let (first, ..) = host.command(&command(NvmOpcode::READ, 7, keyed(512)), &[]);
    let (second, _, _, fault) = host.command(&command(NvmOpcode::READ, 7, keyed(512)), &[]);
    assert_ne!(first, second);
    assert_eq!(fault, Some(Status::CID_CONFLICT));
    assert_eq!(host.end.find(7), Some(second));
    host.end
        .respond(second, Cqe::default().with_status(Status::CID_CONFLICT))
        .unwrap();
    host.end
        .respond_with_data(first, memory(512), 512, Cqe::default())
        .unwrap();
    assert_eq!(host.end.respond(first, Cqe::default()), Err(RespondError::Again));
}

#[test]
fn memory_is_used_only_as_the_command_says() {
    let mut host = Host::connected();
    // A read's memory is not read, a write's not written.
    let (read, ..) = host.command(&command(NvmOpcode::READ, 1, keyed(512)), &[]);
    let (refused, _) = host.end.accept(read, memory(512)).unwrap_err();
    assert!(matches!(refused, AcceptError::Direction));
    let (write, ..) = host.command(&command(NvmOpcode::WRITE, 2, keyed(512)), &[]);
    let (refused, back) = host
        .end
        .respond_with_data(write, memory(512), 512, Cqe::default())
        .unwrap_err();
    assert_eq!((refused, back.len()), (RespondError::Direction, 512));
    // No more than the descriptor has, either way.
    let (refused, _) = host.end.accept(write, memory(513)).unwrap_err();
    assert_eq!(refused.status(), Status::SGL_DATA_LENGTH_INVALID);
    let (refused, _) = host
        .end
        .respond_with_data(read, memory(513), 513, Cqe::default())
        .unwrap_err();
    let expected = RespondError::Length {
        len: 513,
        found: 513,
        offered: 512,
    };
    assert_eq!(refused, expected);
    // Nor more than the memory has.
    let (refused, _) = host
        .end
        .respond_with_data(read, memory(100), 512, Cqe::default())
        .unwrap_err();
    assert!(matches!(refused, RespondError::Length { found: 100, .. }));
    let (refused, _) = host
        .end
        .respond_with_data(read, Data::Anywhere { len: 512 }, 512, Cqe::default())
        .unwrap_err();
    assert!(matches!(refused, RespondError::Length { found: 0, .. }));
    // Fabrics commands have their direction in the command type.
    let mut get = Sqe::new(FabricsOpcode::FABRICS, 4);
    get.set_sgl(keyed(512));
    get.cid = 3.into();
    let (get, ..) = host.command(&get, &[]);
    assert!(host.end.accept(get, memory(512)).is_err());
    assert!(
        host.end
            .respond_with_data(get, memory(512), 512, Cqe::default())
            .is_err()
    );
    assert_eq!(host.end.outstanding(), 0);
}

#[test]
fn a_descriptor_that_cannot_be_followed_is_not_used() {
    let mut host = Host::connected();
    for (cid, sgl) in (0..).zip([Sgl::transport(512), Sgl::data_block(0, 512), Sgl([0xff; 16])]) {
        let (key, _, _, fault) = host.command(&command(NvmOpcode::WRITE, cid, sgl), &[]);
        assert_eq!(fault.map(Status::code), Some(Status::SGL_TYPE_INVALID));
        assert!(host.end.accept(key, memory(512)).is_err());
        host.end
            .respond(key, Cqe::default().with_status(Status::SGL_TYPE_INVALID))
            .unwrap();
    }
    while let Some(work) = host.end.poll_work() {
        let Operation::Send(send) = work.operation else {
            panic!("{work:?}")
        };
        assert!(send.invalidate.is_none() && send.list.is_empty() && send.payload.is_empty());
        assert_eq!(send.entry.len(), 16);
    }
}

#[test]
fn a_read_that_the_host_does_not_answer_ends_the_queue_and_returns_its_memory() {
    let mut host = Host::connected();
    let (key, ..) = host.command(&command(NvmOpcode::WRITE, 1, keyed(4096)), &[]);
    host.end.accept(key, memory(4096)).unwrap();
    let (waiting, ..) = host.command(&command(NvmOpcode::WRITE, 2, keyed(512)), &[]);
    let work = host.end.poll_work().unwrap();
    let Operation::Read { remote, local } = &work.operation else {
        panic!("{work:?}")
    };
    assert_eq!(
        (remote.address, remote.key),
        (RemoteAddress(0x4000), RemoteKey(9))
    );
    assert_eq!((remote.len, local.len()), (4096, 4096));
    let id = work.id;
    assert_eq!(host.returned().1, [] as [usize; 0]);
    // The host's key was not valid: the adapter fails the queue pair.
    host.end.work_failed(id);
    assert!(host.end.failed());
    assert_eq!(host.returned().1, [4096]);
    assert!(host.end.is_finished());
    // The session may still speak of its commands.
    host.end.respond(waiting, Cqe::default()).unwrap();
    host.end.accept(waiting, memory(16)).unwrap();
    assert_eq!(host.returned().1, [16]);
    host.end
        .respond_with_data(key, memory(8), 8, Cqe::default())
        .unwrap();
    assert_eq!(host.returned().1, [8]);
}

#[test]
fn memory_stays_until_posted_work_is_over() {
    let mut host = Host::connected();
    let (key, ..) = host.command(&command(NvmOpcode::READ, 1, keyed(4096)), &[]);
    host.end
        .respond_with_data(key, memory(4096), 4096, Cqe::default())
        .unwrap();
    let first = host.end.poll_work().map(|work| (work.id, work.signaled)).unwrap();
    host.end.lost();
    host.returned();
    assert!(host.end.poll_work().is_none(), "nothing is posted after the end");
    assert!(host.returned().1.is_empty() && !host.end.is_finished());
    host.end.work_failed(first.0);
    assert_eq!(host.returned().1, [4096]);
    assert!(host.end.is_finished());
    host.end.stopped();
    assert!(host.returned().1.is_empty(), "once");
}

#[test]
fn a_capsule_that_an_executor_uses_stays_until_it_is_done() {
    let mut host = Host::connected();
    let (key, ..) = host.command(&command(NvmOpcode::WRITE, 1, Sgl::in_capsule(0, 512)), &[3; 512]);
    let (_unseen, ..) = host.command(&command(NvmOpcode::WRITE, 2, Sgl::in_capsule(0, 8)), &[3; 8]);
    let data = host.end.take_data(key);
    assert_eq!(data.len(), 512);
    host.end.stopped();
    // The one that nobody took is free, the other is still read by its executor.
    assert_eq!(host.returned().0, [2]);
    assert!(!host.end.is_finished());
    host.end.respond(key, Cqe::default()).unwrap();
    assert_eq!(host.returned().0, [1]);
    assert!(host.end.is_finished());
}

#[test]
fn an_aborted_command_leaves_no_event_for_the_next_with_its_key() {
    let mut host = Host::connected();
    let (key, ..) = host.command(&command(NvmOpcode::WRITE, 1, keyed(512)), &[]);
    host.end.accept(key, memory(512)).unwrap();
    let read = host.end.poll_work().unwrap().id;
    host.end.completed(read).unwrap();
    // The data is there, but the session hears of an Abort first.
    assert_eq!(host.end.cancel(key), Ok(Cancel::Now));
    assert_eq!(host.end.take_data(key).len(), 512);
    host.end.respond(key, Cqe::default()).unwrap();
    assert!(host.end.poll_work().is_some());
    // One that was not reported yet, found by its id.
    host.send(&command(NvmOpcode::WRITE, 2, keyed(512)), &[]).unwrap();
    let key = host.end.find(2).unwrap();
    assert_eq!(host.end.cancel(key), Ok(Cancel::Now));
    host.end.respond(key, Cqe::default()).unwrap();
    assert!(host.end.poll_work().is_some());
    let (same, ..) = host.command(&command(NvmOpcode::FLUSH, 3, keyed(0)), &[]);
    assert_eq!(same, key);
    assert!(host.end.poll_event().is_none());
}

#[test]
fn a_cancelled_read_keeps_its_memory_until_it_is_over() {
    let mut host = Host::connected();
    let (key, ..) = host.command(&command(NvmOpcode::WRITE, 1, keyed(4096)), &[]);
    host.end.accept(key, memory(4096)).unwrap();
    let read = host.end.poll_work().unwrap().id;
    assert_eq!(host.end.cancel(key), Ok(Cancel::Later));
    assert_eq!(
        host.end.respond(key, Cqe::default()),
        Err(RespondError::DataComing)
    );
    assert!(host.end.take_data(key).is_empty());
    host.end.completed(read).unwrap();
    let status = Status::ABORT_REQUESTED;
    assert_eq!(
        host.end.poll_event(),
        Some(ControllerEvent::DataFailed { key, status })
    );
    assert_eq!(host.end.take_data(key).len(), 4096);
    host.end.respond(key, Cqe::default()).unwrap();
    assert_eq!(host.end.cancel(key), Err(RespondError::Again));
    assert!(host.end.poll_work().is_some());
    assert_eq!(host.end.cancel(key), Err(RespondError::Unknown(key)));
}

#[test]
fn a_read_that_later_work_overtakes_is_not_over() {
    let mut host = Host::connected();
    let (write, ..) = host.command(&command(NvmOpcode::WRITE, 1, keyed(512)), &[]);
    host.end.accept(write, memory(512)).unwrap();
    let read = host.end.poll_work().unwrap().id;
    // A response behind it, signaled for its memory's sake, and done first.
    let (other, ..) = host.command(&command(NvmOpcode::READ, 2, keyed(512)), &[]);
    host.end
        .respond_with_data(other, memory(512), 512, Cqe::default())
        .unwrap();
    let mut last = read;
    while let Some(work) = host.end.poll_work() {
        last = work.id;
    }
    assert_ne!(last, read);
    host.end.completed(last).unwrap();
    assert_eq!(host.end.poll_event(), None, "the data is not there");
    assert_eq!(host.end.outstanding(), 1);
    assert!(host.end.waits_for_work());
    host.end.completed(read).unwrap();
    assert_eq!(
        host.end.poll_event(),
        Some(ControllerEvent::DataReceived { key: write })
    );
    assert_eq!(host.end.outstanding(), 0);
    // Once is enough.
    assert_eq!(
        host.end.completed(read),
        Err(TransportError::UnknownWork { id: read })
    );
}

#[test]
fn completions_of_work_that_nobody_posted() {
    let mut host = Host::connected();
    assert_eq!(
        host.end.completed(WorkId(0)),
        Err(TransportError::UnknownWork { id: WorkId(0) })
    );
    assert!(host.end.failed());
    assert_eq!(host.end.completed(WorkId(7)), Ok(()));
    host.end.work_failed(WorkId(7));
}

#[test]
fn a_response_has_no_bytes_but_its_own() {
    let mut host = Host::connected();
    let (key, ..) = host.command(&command(NvmOpcode::FLUSH, 0x1234, keyed(0)), &[]);
    host.end.respond(key, Cqe::new(0x9999)).unwrap();
    let work = host.end.poll_work().unwrap();
    let Operation::Send(send) = &work.operation else {
        panic!("{work:?}")
    };
    let mut expected = [0; 16];
    expected[12..14].copy_from_slice(&[0x34, 0x12]);
    assert_eq!(send.entry, expected);
    assert_eq!((send.len(), send.copied_len(), send.is_empty()), (16, 16, false));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Any capsules at all, answered in the way that their opcodes ask for: what is posted lies in what a descriptor named.
    #[test]
    fn any_capsule_is_bounded(
        capsules in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..600), 0_u8..6, 0_usize..8192),
            1..40,
        ),
    ) {
        let mut host = Host::connected();
        let mut sent = 0;
        let mut lent = 0_usize;
        let mut back = (0, 0);
        for (mut bytes, kind, len) in capsules {
            if let Some(capsule) = bytes.first_chunk_mut::<64>() {
                // Mostly something that may be right.
                capsule[0] = [1, 2, 1, 2, 0x7f, capsule[0]][usize::from(kind)];
                if kind != 5 {
                    capsule[39] = [0x01, 0x31, 0x40, 0x4f][usize::from(capsule[39] % 4)];
                    capsule[26..32].fill(0);
                    capsule[34..36].fill(0);
                }
            }
            let buffer = host.buffer(&bytes);
            sent += 1;
            let _ = host.end.received(buffer, bytes.len());
            while let Some(event) = host.end.poll_event() {
                let ControllerEvent::Command { key, sqe, in_capsule, .. } = event else { continue };
                prop_assert!(in_capsule <= 512);
                let offered = sqe.sgl().parse().data_length();
                match host.end.accept(key, memory(len)) {
                    Ok(()) => {
                        prop_assert!(len <= offered as usize);
                        lent += 1;
                        continue;
                    }
                    Err((_, unused)) => prop_assert_eq!(unused.len(), len),
                }
                match host.end.respond_with_data(key, memory(len), len, Cqe::default()) {
                    Ok(()) => {
                        prop_assert!(len <= offered as usize);
                        lent += usize::from(len > 0);
                    }
                    Err((_, unused)) => {
                        prop_assert_eq!(unused.len(), len);
                        host.end.respond(key, Cqe::default()).unwrap();
                    }
                }
            }
            let mut done = Vec::new();
            while let Some(work) = host.end.poll_work() {
                if let Operation::Read { remote, local } | Operation::Write { remote, local } = &work.operation {
                    prop_assert_eq!(remote.len as usize, local.len());
                    prop_assert!(remote.address.checked_add(u64::from(remote.len) - 1).is_some());
                }
                if work.signaled {
                    done.push(work.id);
                }
            }
            for id in done {
                host.end.completed(id).unwrap();
            }
            // Writes that came are never answered, so the queue fills.
            let (receives, data) = host.returned();
            back.0 += receives.len();
            back.1 += data.len();
        }
        host.end.stopped();
        while let Some(returned) = host.end.poll_returned() {
            match returned {
                Returned::Receive(_) => back.0 += 1,
                Returned::Data(_) => back.1 += 1,
            }
        }
        prop_assert_eq!(back, (sent, lent));
        prop_assert!(host.end.is_finished());
    }
}
