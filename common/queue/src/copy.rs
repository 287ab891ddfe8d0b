//! Copies to and from memory that somebody else may be changing at the same moment.
//!
//! A region's bytes can be written by a drive, by another process or by another thread while they are copied. Rust's
//! own copies (and slices) may assume that this does not happen: the compiler may read such a byte again later instead
//! of keeping what it copied, so a value that was checked is not the value that is used. The copies here are calls of
//! the C library through a pointer that is read with a volatile load, which the compiler cannot see through: what was
//! copied stays as it was copied. Each byte copied is one that was there at some moment during the call; nothing is promised
//! about bytes together.
//!
//! The alternatives lost: relaxed atomic words are five times slower than the C library for a cached 4 KiB block, and
//! may not overlap with accesses of other sizes; inline assembly is as fast but has to be written for each architecture.
//! The cost is a call of about 3 ns where a short copy of constant length would be inlined. Miri interprets plain
//! copies instead.
#![expect(unsafe_code, reason = "calls the C library's copies on raw pointers")]

use std::ffi::{c_int, c_void};

#[cfg(not(miri))]
unsafe extern "C" {
    fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void;
    fn memset(to: *mut c_void, value: c_int, len: usize) -> *mut c_void;
}

#[cfg(miri)]
unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    // SAFETY: the caller's promise is the same.
    unsafe { to.copy_from(from, len) };
    to
}

#[cfg(miri)]
unsafe extern "C" fn memset(to: *mut c_void, value: c_int, len: usize) -> *mut c_void {
    let [byte, ..] = value.to_le_bytes();
    // SAFETY: the caller's promise is the same.
    unsafe { to.write_bytes(byte, len) };
    to
}

static MOVE: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void = memmove;
static SET: unsafe extern "C" fn(*mut c_void, c_int, usize) -> *mut c_void = memset;

/// Copies `len` bytes; the ranges may overlap, and others may access them at the same time.
///
/// # Safety
/// `from` must be valid for reads of `len` initialised bytes and `to` for writes of `len` bytes. No Rust reference
/// may be used for bytes of `to` meanwhile, nor an exclusive one for bytes of `from`, except those that the
/// caller derived the pointers from.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: a reference to a static is valid for reads.
    let function = unsafe { (&raw const MOVE).read_volatile() };
    // SAFETY: the caller promises that both ranges are valid; `memmove` asks for nothing else.
    unsafe { function(to.cast(), from.cast(), len) };
}

/// Sets `len` bytes to `value`; others may access them at the same time.
///
/// # Safety
/// `to` must be valid for writes of `len` bytes, and no Rust reference may be used for them meanwhile.
#[inline]
pub(crate) unsafe fn fill(to: *mut u8, value: u8, len: usize) {
    // SAFETY: a reference to a static is valid for reads.
    let function = unsafe { (&raw const SET).read_volatile() };
    // SAFETY: the caller promises that the range is valid; `memset` asks for nothing else.
    unsafe { function(to.cast(), value.into(), len) };
}
