//! The session of [`rdma_controller`](super::rdma_controller): what it may ask of the connection, and what must come of it.

use homi_fabric::rdma::{AcceptError, Cancel, CommandKey, ControllerEvent, RespondError};
use homi_queue::Data;
use homi_spec::{Cqe, Status};

use super::rdma_capsules::{ENTRY, Way};
use super::rdma_controller::{Due, Live, Loan, Phase, World, content};
use super::rdma_wire::{Memory, address};

impl World {
    pub(super) fn events(&mut self, most: usize) {
        for _ in 0..=most {
            let event = self.end.poll_event();
            let due = self.due.pop_front();
            match (event, due) {
                (None, None) => return,
                (
                    Some(ControllerEvent::Command {
                        key,
                        sqe,
                        in_capsule,
                        fault,
                    }),
                    Some(Due::Command(capsule)),
                ) => {
                    self.reached.commands += 1;
                    assert_eq!(sqe.cid.get(), capsule.cid);
                    assert_eq!(fault == Some(Status::CID_CONFLICT), capsule.conflict, "{fault:?}");
                    assert_eq!(
                        fault.is_some(),
                        capsule.conflict || !capsule.valid,
                        "{fault:?} {capsule:?}"
                    );
                    let inside = if capsule.inside.is_some() {
                        capsule.offered
                    } else {
                        0
                    };
                    assert_eq!(in_capsule as usize, inside);
                    if capsule.valid && capsule.way != Way::Nowhere {
                        let said = sqe.sgl().parse().data_length();
                        assert_eq!(said as usize, capsule.offered, "what the session is told");
                    }
                    self.reached.failures += usize::from(fault.is_some());
                    self.serial += 1;
                    let live = Live {
                        serial: self.serial,
                        phase: Phase::Deciding,
                        accepted: false,
                        holds_buffer: capsule.inside.is_some(),
                        taken: false,
                        memory: None,
                        wanted: 0,
                        moved: 0,
                        reads: 0,
                        cqe: Cqe::default(),
                        capsule: *capsule,
                    };
                    assert!(self.live.insert(key, live).is_none(), "a key names one command");
                }
                (Some(ControllerEvent::DataReceived { key }), Some(Due::Data(known))) => {
                    assert_eq!(key, known);
                    self.reached.transfers += 1;
                    let live = self.live.get(&key).expect("its command is in flight");
                    let serial = live.serial;
                    // A session in a hurry has taken it before.
                    let holds = |memory: &Memory| memory.holds(live.wanted, |at| content(serial, at));
                    assert!(live.memory.as_ref().is_none_or(holds));
                }
                (Some(ControllerEvent::DataFailed { key, status }), Some(Due::Failed(known))) => {
                    assert_eq!((key, status), (known, Status::ABORT_REQUESTED));
                }
                (event, due) => unreachable!("{event:?} instead of {due:?}"),
            }
        }
    }

    fn lend(&mut self, memory: &Memory) {
        let loan = Loan {
            memory: memory.clone(),
            back: false,
        };
        assert!(self.loans.insert(memory.address(), loan).is_none());
    }

    pub(super) fn accept(&mut self, key: CommandKey, memory: Memory) {
        self.lend(&memory);
        let accepted = self.end.accept(key, memory.data());
        if self.failed {
            assert!(accepted.is_ok());
            if memory.len() > 0 {
                self.free_memory(&memory);
            } else {
                // Nothing to give back.
                self.loans.remove(&memory.address());
            }
            return;
        }
        let expected = match self.live.get(&key) {
            None => Err("unknown"),
            Some(live) if live.phase != Phase::Deciding || live.accepted || live.holds_buffer => Err("again"),
            Some(live) if live.capsule.way != Way::ToController => Err("direction"),
            Some(live) if memory.len() == 0 || memory.len() > live.capsule.offered => Err("length"),
            Some(_) => Ok(()),
        };
        match accepted {
            Ok(()) => {
                assert_eq!(expected, Ok(()));
                let live = self.live.get_mut(&key).expect("it was found");
                live.phase = Phase::Reading;
                live.accepted = true;
                live.wanted = memory.len();
                live.memory = Some(memory);
                self.reading.push(key);
            }
            Err((error, data)) => {
                let said = match error {
                    AcceptError::Unknown(_) => "unknown",
                    AcceptError::Again => "again",
                    AcceptError::Direction => "direction",
                    AcceptError::Length { .. } => "length",
                };
                assert_eq!(expected, Err(said), "{error}");
                assert!(!error.status().is_success() && memory.is(&data));
                self.loans.remove(&memory.address());
            }
        }
    }

    pub(super) fn respond(&mut self, key: CommandKey, memory: Option<Memory>, used: usize, cqe: Cqe) {
        if let Some(memory) = &memory {
            self.lend(memory);
        }
        let data = memory.as_ref().map_or(Data::None, Memory::data);
        let len = memory.as_ref().map_or(0, Memory::len);
        let responded = self.end.respond_with_data(key, data, used, cqe);
        if self.failed {
            assert!(responded.is_ok());
            match &memory {
                Some(memory) if len > 0 => self.free_memory(memory),
                Some(memory) => drop(self.loans.remove(&memory.address())),
                None => {}
            }
            let deciding = |live: &Live| live.phase == Phase::Deciding;
            if self.live.get(&key).is_some_and(deciding) {
                self.free(key);
            }
            return;
        }
        let expected = match self.live.get(&key) {
            None => Err("unknown"),
            Some(live) => match live.phase {
                Phase::Reading | Phase::Cancelled => Err("coming"),
                Phase::Responding => Err("again"),
                Phase::Deciding if used > 0 && live.capsule.way != Way::ToHost => Err("direction"),
                Phase::Deciding if used > len || used > live.capsule.offered => Err("length"),
                Phase::Deciding => Ok(()),
            },
        };
        match responded {
            Ok(()) => {
                assert_eq!(expected, Ok(()));
                self.due.retain(|due| !due.is_about(key));
                self.responding.push_back(key);
                let live = self.live.get_mut(&key).expect("it was found");
                let given = memory.filter(|memory| memory.len() > 0);
                let left = std::mem::replace(&mut live.memory, given);
                let held = std::mem::take(&mut live.holds_buffer);
                live.phase = Phase::Responding;
                live.wanted = used;
                live.moved = 0;
                live.cqe = cqe;
                live.cqe.cid = live.capsule.cid.into();
                let buffer = live.capsule.buffer;
                if held {
                    self.free_buffer(buffer);
                }
                if let Some(left) = left {
                    self.free_memory(&left);
                }
                if len == 0 {
                    self.loans.retain(|_, loan| loan.memory.len() > 0);
                }
            }
            Err((error, data)) => {
                let said = match error {
                    RespondError::Unknown(_) => "unknown",
                    RespondError::DataComing => "coming",
                    RespondError::Again => "again",
                    RespondError::Direction => "direction",
                    RespondError::Length { .. } => "length",
                };
                assert_eq!(expected, Err(said), "{error}");
                if let Some(memory) = &memory {
                    assert!(memory.is(&data), "refused memory comes back");
                    self.loans.remove(&memory.address());
                }
            }
        }
    }

    pub(super) fn cancel(&mut self, key: CommandKey) {
        let cancelled = self.end.cancel(key);
        let Some(live) = self.live.get_mut(&key) else {
            assert_eq!(cancelled, Err(RespondError::Unknown(key)));
            return;
        };
        let expected = match live.phase {
            Phase::Reading | Phase::Cancelled if live.reads > 0 => {
                live.phase = Phase::Cancelled;
                Ok(Cancel::Later)
            }
            Phase::Responding => Err(RespondError::Again),
            Phase::Deciding | Phase::Reading | Phase::Cancelled => {
                live.phase = Phase::Deciding;
                Ok(Cancel::Now)
            }
        };
        assert_eq!(cancelled, expected);
        if expected.is_ok() {
            self.reading.retain(|other| *other != key);
            self.due.retain(|due| !due.is_about(key));
        }
    }

    pub(super) fn take(&mut self, key: CommandKey) {
        let data = self.end.take_data(key);
        let live = self.live.get_mut(&key);
        let Some(live) = live.filter(|live| live.phase == Phase::Deciding) else {
            assert!(
                matches!(data, Data::None),
                "memory that may be in use was given away"
            );
            return;
        };
        if live.holds_buffer && !live.taken {
            live.taken = true;
            let buffer = self.buffers.get(&live.capsule.buffer);
            let buffer = buffer.expect("the connection has it");
            let [segment] = data.segments() else {
                unreachable!("data in a capsule is in one piece");
            };
            let at = live.capsule.inside.unwrap_or(0);
            assert_eq!(address(segment.region()), address(&buffer.region));
            assert_eq!(
                (segment.start(), segment.len()),
                (ENTRY + at, live.capsule.offered)
            );
            let mut bytes = vec![0; segment.len()];
            data.read(0, &mut bytes).expect("inside");
            let sent = live.capsule.after.get(at..at + live.capsule.offered);
            assert_eq!(sent, Some(bytes.as_slice()), "what is seen is what was sent");
        } else if let Some(memory) = live.memory.take() {
            assert!(memory.is(&data), "other memory came back");
            assert!(!self.line.names(memory.address()));
            self.loans.remove(&memory.address());
        } else {
            assert!(matches!(data, Data::None));
        }
    }
}
