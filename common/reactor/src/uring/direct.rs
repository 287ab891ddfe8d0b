//! Calls from here for a few busy streams, while the loop polls.
//!
//! A receive that waits in the ring costs more than one that finds its bytes: the kernel arms a poll, is called back when bytes
//! come, and tries again in a task of its own before there is a completion. While the loop polls anyway and few streams are busy,
//! non-blocking calls from here are there sooner: about a sixth of a round trip at depth 1 over a loopback connection. With more
//! streams the ring's one call for all of them wins, as it does for payload, which takes a while to arrive and is best waited for
//! without taking the socket's lock. And nobody may be tried when the loop sleeps. So the number of streams is small, they are those
//! whose last receive brought little, those that bring nothing for a while go back to the ring, and all of them do before a sleep.

use std::hint;
use std::io::ErrorKind;
use std::mem;
use std::os::fd::AsFd;

use super::{Receiving, Slot, Uring};
use crate::slab::SocketKey;
use crate::system;
use crate::types::{Event, Wait};

/// Streams that are tried.
const STREAMS: usize = 4;

/// Bytes of a receive that are payload rather than commands: a stream that brings so many is left to the ring.
pub(super) const LONG: usize = 16 << 10;

/// Tries in vain until a stream goes back to the ring.
const VAIN: u32 = 256;

/// Pauses after a turn that found nothing: a receive takes its socket's lock, which those who deliver to it need.
const PAUSES: u32 = 16;

/// What is to be done by calls from here.
pub(super) struct Direct {
    /// Streams to receive from.
    receiving: Vec<SocketKey>,
    /// Streams with something to send.
    sending: Vec<SocketKey>,
    staging: Vec<u8>,
}

impl Direct {
    pub(super) fn new(staging_len: u32) -> Self {
        Self {
            receiving: Vec::with_capacity(STREAMS),
            sending: Vec::with_capacity(STREAMS),
            staging: vec![0; staging_len as usize],
        }
    }

    /// After a turn that found nothing.
    pub(super) fn pause(&self) {
        if !self.receiving.is_empty() {
            for _ in 0..PAUSES {
                hint::spin_loop();
            }
        }
    }
}

impl Uring {
    /// Takes a receive that was just asked for, if it is for here.
    pub(super) fn receive_directly(&mut self, key: SocketKey) -> bool {
        let room = self.direct.receiving.len() < STREAMS;
        let Some(stream) = self.open_stream(key).filter(|stream| room && stream.busy) else {
            return false;
        };
        let Receiving::Staging { limit } = stream.receiving else {
            return false;
        };
        stream.receiving = Receiving::Direct { limit };
        self.direct.receiving.push(key);
        true
    }

    /// Takes a send that was just asked for, if it is for here.
    pub(super) fn send_directly(&mut self, key: SocketKey) -> bool {
        let room = self.direct.sending.len() < STREAMS;
        if self.open_stream(key).is_none_or(|stream| !room || !stream.busy) {
            return false;
        }
        self.direct.sending.push(key);
        true
    }

    /// For a stream that is being closed.
    pub(super) fn forget_direct_receive(&mut self, key: SocketKey) {
        if let Some(Slot::Stream(stream)) = self.slots.get_mut(key)
            && matches!(stream.receiving, Receiving::Direct { .. })
        {
            stream.receiving = Receiving::No;
            self.direct.receiving.retain(|waiting| *waiting != key);
        }
    }

    /// For a stream that is being closed: lets go of what a send holds, if it is not in the ring.
    pub(super) fn forget_direct_send(&mut self, key: SocketKey) -> bool {
        let Some(position) = self.direct.sending.iter().position(|waiting| *waiting == key) else {
            return false;
        };
        self.direct.sending.swap_remove(position);
        if let Some(Slot::Stream(stream)) = self.slots.get_mut(key) {
            stream.sending = false;
            // SAFETY: nothing of this stream's send is in the ring.
            unsafe { stream.send.get() }.take_list();
        }
        true
    }

    /// Does what was left to be done from here, and returns the number of events that came of it.
    pub(super) fn turn_direct(&mut self, wait: Wait, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let mut delivered = 0;
        if !self.direct.sending.is_empty() {
            let mut sending = mem::take(&mut self.direct.sending);
            for key in sending.drain(..) {
                delivered += self.try_send(key, handler);
            }
            self.direct.sending = sending;
        }
        if !self.direct.receiving.is_empty() {
            let mut receiving = mem::take(&mut self.direct.receiving);
            receiving.retain(|key| {
                let (events, stays) = self.try_receive(*key, wait, handler);
                delivered += events;
                stays
            });
            self.direct.receiving = receiving;
        }
        delivered
    }

    fn try_send(&mut self, key: SocketKey, handler: &mut impl FnMut(Event<'_>)) -> usize {
        let Some(stream) = self.open_stream(key) else {
            return 0;
        };
        let token = stream.token;
        // SAFETY: nothing of this stream's send is in the ring.
        let operation = unsafe { stream.send.get() };
        let result = operation.send(stream.descriptor.as_fd());
        let ended = match result {
            Ok(true) => Ok(operation.take_list()),
            Ok(false) => {
                self.counters.syscalls += 1;
                self.counters.short_sends += 1;
                self.arm_send(key);
                return 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.counters.syscalls += 1;
                self.arm_send(key);
                return 0;
            }
            Err(error) => Err((error, operation.take_list())),
        };
        stream.sending = false;
        self.counters.syscalls += 1;
        match ended {
            Ok(list) => {
                self.counters.sends += 1;
                handler(Event::Sent { token, list });
            }
            Err((error, list)) => handler(Event::Failed {
                token,
                error,
                list: Some(list),
            }),
        }
        1
    }

    /// Returns the number of events, and whether the stream is to be tried again.
    fn try_receive(
        &mut self,
        key: SocketKey,
        wait: Wait,
        handler: &mut impl FnMut(Event<'_>),
    ) -> (usize, bool) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(key) else {
            return (0, false);
        };
        let Receiving::Direct { limit } = stream.receiving else {
            return (0, false);
        };
        if wait != Wait::Poll || stream.vain >= VAIN {
            stream.vain = 0;
            stream.busy = false;
            stream.receiving = Receiving::Staging { limit };
            self.arm_receive(key);
            return (0, false);
        }
        let room = (limit as usize).clamp(1, self.direct.staging.len());
        let staging = self.direct.staging.get_mut(..room).unwrap_or(&mut []);
        self.counters.syscalls += 1;
        let received = system::receive(stream.descriptor.as_fd(), None, staging);
        let token = stream.token;
        match received {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.counters.empty_receives += 1;
                stream.vain += 1;
                return (0, true);
            }
            _ => stream.receiving = Receiving::No,
        }
        match received {
            Ok((_, 0)) => handler(Event::Closed { token }),
            Ok((_, received)) => {
                self.counters.receives += 1;
                stream.vain = 0;
                stream.busy = received < LONG;
                stream.drained = received < room;
                let bytes = self.direct.staging.get(..received).unwrap_or(&[]);
                handler(Event::Received {
                    token,
                    direct: 0,
                    bytes,
                });
            }
            Err(error) => handler(Event::Failed {
                token,
                error,
                list: None,
            }),
        }
        (1, false)
    }
}
