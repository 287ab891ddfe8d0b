//! Access to registers, and what has to be around it.
//!
//! VFIO maps BARs uncached. What is left to order is this process's ordinary memory against them (`Registers` promises it), once in the
//! compiler and once in the processor:
//!
//! - x86-64: the processor orders stores to memory before later stores to uncached memory, and loads after earlier uncached loads; only the
//!   compiler has to be held.
//! - AArch64: device memory is ordered with itself only: `dmb oshst` before a store, `dmb oshld` after a load. The outer shareable domain
//!   contains devices; the fences of the language cover processors alone.
//! - RISC-V: fences between memory and I/O space.

use std::ptr;

/// Whether registers can be accessed on this processor in the order that is promised.
pub(crate) const ORDERED: bool = cfg!(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
));

/// Everything written to memory before is seen by devices before a register is written after.
#[inline]
fn before_write() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier; it touches nothing. Not marked as leaving memory alone, so that the compiler keeps to it as well.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "riscv64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("fence w, o", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "aarch64", target_arch = "riscv64")))]
    // SAFETY: no instruction at all; the compiler must assume that it reads and writes memory.
    unsafe {
        std::arch::asm!("", options(nostack, preserves_flags));
    }
}

/// What is read from memory after was there when a register was read before.
#[inline]
fn after_read() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "riscv64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("fence i, r", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "aarch64", target_arch = "riscv64")))]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("", options(nostack, preserves_flags));
    }
}

/// Reads a register.
///
/// # Safety
/// `at` is aligned to 4 bytes and lies in a mapping that can be read.
#[inline]
pub(crate) unsafe fn read32(at: *const u32) -> u32 {
    // SAFETY: by the caller's promise. Registers are no Rust objects, so nothing aliases them; volatile makes it one access.
    let value = unsafe { ptr::read_volatile(at) };
    after_read();
    u32::from_le(value)
}

/// Writes a register.
///
/// # Safety
/// `at` is aligned to 4 bytes and lies in a mapping that can be written.
#[inline]
pub(crate) unsafe fn write32(at: *mut u32, value: u32) {
    before_write();
    // SAFETY: by the caller's promise, as for reading.
    unsafe { ptr::write_volatile(at, value.to_le()) };
}
