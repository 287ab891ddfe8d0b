//! What completions become: events, continued operations, or slots given up.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use io_uring::cqueue;

use super::direct::LONG;
use super::{Kind, Receiving, Slot, Uring, parse_user_data};
use crate::slab::SocketKey;
use crate::system;
use crate::types::{ACCEPT_PAUSE, Event};

impl Uring {
    /// Handles one completion and returns the number of events that it became.
    pub(super) fn complete(
        &mut self,
        completion: &cqueue::Entry,
        handler: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let (result, flags) = (completion.result(), completion.flags());
        let more = cqueue::more(flags);
        if !more {
            self.in_flight -= 1;
        }
        let Some((kind, key)) = parse_user_data(completion.user_data()) else {
            return 0;
        };
        match kind {
            Kind::Receive => self.complete_receive(key, result, flags, handler),
            Kind::Send => self.complete_send(key, result, handler),
            Kind::Accept => self.complete_accept(key, result, more, handler),
            Kind::Watch => self.complete_watch(key, result, handler),
            Kind::Waker => {
                // The notification itself is in the waker's state.
                if !more {
                    self.arm_waker();
                }
                0
            }
            Kind::Cancel => 0,
        }
    }

    fn complete_receive(
        &mut self,
        key: SocketKey,
        result: i32,
        flags: u32,
        handler: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let received = usize::try_from(result).unwrap_or(0);
        let lent = cqueue::buffer_select(flags).map(|buffer| {
            // SAFETY: number and length come from this completion, which is handled once.
            unsafe { self.staging.take(buffer, received) }
        });
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return 0;
        };
        let receiving = mem::replace(&mut stream.receiving, Receiving::No);
        stream.drained = !cqueue::sock_nonempty(flags);
        let token = stream.token;
        // SAFETY: the receive has just completed.
        let operation = unsafe { stream.receive.get() };
        if stream.closing {
            operation.finish(0);
            drop(lent);
            self.settle(key);
            return 0;
        }
        match result {
            0 => {
                operation.finish(0);
                handler(Event::Closed { token });
            }
            1.. => {
                self.counters.receives += 1;
                stream.busy = received < LONG;
                let (direct, bytes) = match &lent {
                    Some(lent) => (0, lent.bytes()),
                    None => operation.finish(received),
                };
                handler(Event::Received { token, direct, bytes });
            }
            _ => match (-result, receiving) {
                (libc::ENOBUFS, Receiving::Staging { limit }) => {
                    self.counters.starved += 1;
                    stream.drained = false;
                    stream.receiving = Receiving::Starved { limit };
                    self.starved.push_back(key);
                    return 0;
                }
                (libc::EINTR | libc::EAGAIN, _) => {
                    stream.drained = true;
                    stream.receiving = receiving;
                    drop(lent);
                    self.arm_receive(key);
                    return 0;
                }
                (errno, _) => {
                    operation.finish(0);
                    handler(Event::Failed {
                        token,
                        error: io::Error::from_raw_os_error(errno),
                        list: None,
                    });
                }
            },
        }
        1
    }

    fn complete_send(&mut self, key: SocketKey, result: i32, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return 0;
        };
        // SAFETY: the send has just completed.
        let operation = unsafe { stream.send.get() };
        if stream.closing {
            operation.take_list();
            stream.sending = false;
            self.settle(key);
            return 0;
        }
        let sent = match usize::try_from(result) {
            Ok(sent) => sent,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => 0,
            Err(_) => {
                stream.sending = false;
                let (token, list) = (stream.token, Some(operation.take_list()));
                handler(Event::Failed {
                    token,
                    error: io::Error::from_raw_os_error(-result),
                    list,
                });
                return 1;
            }
        };
        if !operation.advance(sent) {
            self.counters.short_sends += 1;
            self.arm_send(key);
            return 0;
        }
        stream.sending = false;
        self.counters.sends += 1;
        handler(Event::Sent {
            token: stream.token,
            list: operation.take_list(),
        });
        1
    }

    fn complete_accept(
        &mut self,
        key: SocketKey,
        result: i32,
        more: bool,
        handler: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let accepted = accepted(result);
        let Some(Slot::Single(single)) = self.slots.get_mut(key) else {
            return 0;
        };
        single.armed = more;
        let listener_token = single.token;
        if single.closing {
            self.settle(key);
            return 0;
        }
        match accepted {
            Ok(stream) => {
                self.counters.accepted += 1;
                self.counters.syscalls += 1;
                match system::peer_address(stream.as_fd()) {
                    Ok(peer) => handler(Event::Accepted {
                        listener_token,
                        stream,
                        peer,
                    }),
                    // The peer is gone already; its stream is closed here.
                    Err(error) => handler(Event::AcceptFailed {
                        listener_token,
                        error,
                    }),
                }
                if !more {
                    self.arm_single(key);
                }
                1
            }
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::ECONNABORTED | libc::ECANCELED)
                ) =>
            {
                if !more {
                    self.arm_single(key);
                }
                0
            }
            Err(error) => {
                if !more {
                    self.paused.push((Instant::now() + ACCEPT_PAUSE, key));
                }
                handler(Event::AcceptFailed {
                    listener_token,
                    error,
                });
                1
            }
        }
    }

    fn complete_watch(&mut self, key: SocketKey, result: i32, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let Some(Slot::Single(single)) = self.slots.get_mut(key) else {
            return 0;
        };
        single.armed = false;
        let token = single.token;
        if single.closing {
            self.settle(key);
            return 0;
        }
        if result < 0 {
            handler(Event::Failed {
                token,
                error: io::Error::from_raw_os_error(-result),
                list: None,
            });
        } else {
            handler(Event::Readable { token });
        }
        1
    }
}

/// What a completed accept brought.
pub(super) fn accepted(result: i32) -> io::Result<OwnedFd> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(system::own(result))
    }
}
