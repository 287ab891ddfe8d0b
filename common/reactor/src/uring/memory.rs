//! Memory that the kernel uses while operations are in flight: one block per operation at a fixed address, and the
//! staging buffers with the ring through which they are lent to the kernel.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use homi_queue::{GatherList, MemoryError, Region, Segment};
use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::system::{self, MAX_PARTS, NO_PART};
use crate::types::MAX_LOOKAHEAD;

/// The only group of provided buffers in a reactor's ring.
pub(super) const STAGING_GROUP: u16 = 0;

/// A value at a fixed address. Dropping the handle leaks the value: freeing it is a promise that the kernel does not
/// use it any more, which only the owner of the ring can make.
pub(super) struct Stable<T>(NonNull<T>);

impl<T> Stable<T> {
    pub(super) fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    /// # Safety
    /// No operation that was given an address inside the value may be in flight.
    pub(super) unsafe fn get(&mut self) -> &mut T {
        // SAFETY: the pointer comes from a leaked box and is freed only by `free`, which consumes the handle; the
        // handle is borrowed exclusively, and the caller promises that the kernel does not use the value.
        unsafe { self.0.as_mut() }
    }

    /// # Safety
    /// No operation that was given an address inside the value may be in flight.
    pub(super) unsafe fn free(self) {
        // SAFETY: the pointer comes from a leaked box, the handle is the only one and is consumed, and the caller
        // promises that the kernel does not use the value.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// What a receive into a segment needs.
pub(super) struct ReceiveOperation {
    header: libc::msghdr,
    parts: [libc::iovec; 2],
    lookahead: [u8; MAX_LOOKAHEAD],
    lookahead_len: usize,
    landing: Option<Segment>,
}

impl ReceiveOperation {
    pub(super) fn new() -> Self {
        Self {
            header: system::empty_header(),
            parts: [NO_PART; 2],
            lookahead: [0; MAX_LOOKAHEAD],
            lookahead_len: 0,
            landing: None,
        }
    }

    pub(super) fn hold(&mut self, segment: Segment, lookahead: usize) {
        self.landing = Some(segment);
        self.lookahead_len = lookahead.min(MAX_LOOKAHEAD);
    }

    /// The segment's address and length, if that is all the receive is about.
    pub(super) fn plain(&self) -> Option<(*mut u8, usize)> {
        if self.lookahead_len > 0 {
            return None;
        }
        self.landing
            .as_ref()
            .map(|segment| (segment.host_address(), segment.len()))
    }

    /// A header for the segment and the lookahead.
    pub(super) fn header(&mut self) -> *mut libc::msghdr {
        let landing = self.landing.as_ref().map_or(NO_PART, |segment| libc::iovec {
            iov_base: segment.host_address().cast(),
            iov_len: segment.len(),
        });
        let lookahead = libc::iovec {
            iov_base: self.lookahead.as_mut_ptr().cast(),
            iov_len: self.lookahead_len,
        };
        self.parts = [landing, lookahead];
        self.header = system::empty_header();
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = self.parts.len();
        &raw mut self.header
    }

    /// Ends a receive of so many bytes: lets go of the segment, and returns the number of bytes that are in it and the
    /// bytes that are not.
    pub(super) fn finish(&mut self, received: usize) -> (usize, &[u8]) {
        let direct = received.min(self.landing.take().map_or(0, |segment| segment.len()));
        (direct, self.lookahead.get(..received - direct).unwrap_or(&[]))
    }
}

/// What a send needs.
pub(super) struct SendOperation {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
    list: GatherList,
}

/// How the rest of a list is sent.
pub(super) enum Outgoing {
    Plain(*const u8, usize),
    Gathered(*const libc::msghdr),
}

impl SendOperation {
    pub(super) fn new() -> Self {
        Self {
            header: system::empty_header(),
            parts: Vec::new(),
            list: GatherList::new(),
        }
    }

    pub(super) fn hold(&mut self, list: GatherList) {
        self.list = list;
    }

    /// Describes as much of the list as one call takes.
    pub(super) fn describe(&mut self) -> Outgoing {
        self.parts.clear();
        self.parts
            .extend(self.list.pieces().take(MAX_PARTS).map(system::part_of));
        if let [only] = self.parts.as_slice() {
            return Outgoing::Plain(only.iov_base.cast::<u8>().cast_const(), only.iov_len);
        }
        self.header = system::empty_header();
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = self.parts.len();
        Outgoing::Gathered(&raw const self.header)
    }

    /// Notes that so many bytes are sent; returns whether that was all.
    pub(super) fn advance(&mut self, sent: usize) -> bool {
        self.list.advance(sent);
        self.list.is_empty()
    }

    /// One non-blocking send of what is left, outside of the ring; returns whether that was all.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let sent = system::send(socket, &self.list)?;
        Ok(self.advance(sent))
    }

    pub(super) fn take_list(&mut self) -> GatherList {
        mem::take(&mut self.list)
    }
}

/// Buffers that the kernel picks when bytes have arrived, and the ring that offers them to it.
pub(super) struct Staging {
    ring: Region,
    bytes: Region,
    /// A power of two.
    count: u16,
    len: u32,
    tail: u16,
}

impl Staging {
    pub(super) fn new(buffers: u16, len: u32) -> Result<Self, MemoryError> {
        let count = buffers.max(1).next_power_of_two();
        let page = page_size();
        let ring = Region::allocate(usize::from(count) * size_of::<BufRingEntry>(), page)?;
        let bytes = Region::allocate(usize::from(count) * len as usize, page)?;
        Ok(Self {
            ring,
            bytes,
            count,
            len,
            tail: 0,
        })
    }

    /// Registers the ring and offers every buffer.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the address is that of `count` entries in a page-aligned allocation, which is freed only when the
        // reactor is dropped, after the registration or the ring has ended (or never, if that cannot be known).
        unsafe {
            submitter.register_buf_ring_with_flags(
                self.ring.host_address().addr() as u64,
                self.count,
                STAGING_GROUP,
                0,
            )
        }?;
        for buffer in 0..self.count {
            self.give_back(buffer);
        }
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        usize::from(self.count)
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    fn entry(&self, index: u16) -> *mut BufRingEntry {
        let index = usize::from(index & (self.count - 1));
        self.ring
            .host_address()
            .cast::<BufRingEntry>()
            .wrapping_add(index)
    }

    /// Offers a buffer that the kernel does not own to it.
    fn give_back(&mut self, buffer: u16) {
        let address = self.buffer(buffer).addr() as u64;
        let entry = self.entry(self.tail);
        // SAFETY: `entry` is one of the ring's `count` entries, aligned and zero-initialised when it was allocated. The
        // kernel does not read entries at or past the tail, and the reactor's thread is the only other user. The
        // reference does not outlive the three calls below, which write the address, length and number fields and
        // not the ring's tail, which shares the first entry's last two bytes.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.len);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the argument is the address of the first entry of a ring, which is initialised.
        let tail = unsafe { BufRingEntry::tail(self.entry(0)) };
        // SAFETY: the tail is two aligned bytes inside the allocation, which the kernel reads concurrently and only this
        // thread writes, here.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn buffer(&self, buffer: u16) -> *mut u8 {
        let index = usize::from(buffer & (self.count - 1));
        self.bytes.host_address().wrapping_add(index * self.len as usize)
    }

    /// Takes a buffer over that the kernel filled with `filled` bytes. It goes back when the result is dropped.
    ///
    /// # Safety
    /// `buffer` and `filled` must come from a completion, and each completion may be used once.
    pub(super) unsafe fn take(&mut self, buffer: u16, filled: usize) -> Lent<'_> {
        let filled = filled.min(self.len as usize);
        Lent {
            staging: self,
            buffer,
            filled,
        }
    }

    /// Makes sure that the memory is never freed.
    pub(super) fn leak(&self) {
        mem::forget(self.ring.clone());
        mem::forget(self.bytes.clone());
    }
}

/// A filled buffer, on loan from the kernel.
pub(super) struct Lent<'a> {
    staging: &'a mut Staging,
    buffer: u16,
    filled: usize,
}

impl Lent<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the address is that of a whole buffer inside the allocation, `filled` is at most a buffer's length, and
        // the bytes are initialised (zeroed at allocation). The kernel does not write to the buffer before it is
        // given back, which happens when `self` is dropped; no other reference to it exists, because each loan comes
        // from one completion and borrows the staging area exclusively.
        unsafe { slice::from_raw_parts(self.staging.buffer(self.buffer), self.filled) }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.staging.give_back(self.buffer);
    }
}

fn page_size() -> usize {
    // SAFETY: the call only returns a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // 64 KiB is the largest page of any Linux port, so it is aligned for all.
    usize::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two())
        .unwrap_or(65536)
}
