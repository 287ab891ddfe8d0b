//! Messages of VFIO and iommufd to the kernel (documented in Documentation/driver-api/vfio.rst and userspace-api/iommufd.rst).
//!
//! Each message is a structure of integers that the kernel reads and writes for one request; [`call`] sends it. Most begin with their own
//! size, beyond which the kernel touches nothing. Written here rather than taken from `vfio-bindings`: this is a tenth of it, and that crate
//! has neither the request numbers nor the newest messages.

use std::ffi::{CStr, c_ulong};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A request without direction or size in its number, as all of these are. (`_IO` is 0 in the upper bits on the processors that this
/// crate knows how to order register accesses on.)
const fn request(number: u8) -> libc::Ioctl {
    ((b';' as libc::Ioctl) << 8) | number as libc::Ioctl
}

const CHECK_EXTENSION: libc::Ioctl = request(101);
const GET_API_VERSION: libc::Ioctl = request(100);
const SET_IOMMU: libc::Ioctl = request(102);
const UNSET_CONTAINER: libc::Ioctl = request(105);
const GET_DEVICE_FD: libc::Ioctl = request(106);
const DEVICE_RESET: libc::Ioctl = request(111);

/// The version of VFIO that exists.
pub(crate) const API_VERSION: i32 = 0;
/// The IOMMU model of type 1 that unmaps exactly what was mapped.
pub(crate) const TYPE1V2: c_ulong = 3;
/// The "IOMMU model" that is none.
pub(crate) const NO_IOMMU: c_ulong = 8;

/// A structure that the kernel reads and writes for one request.
///
/// # Safety
/// The structure is the kernel's for this request: integers alone, `repr(C)`, without padding, so that any bits that the kernel writes are
/// valid. The kernel touches nothing beyond it (because its first field tells its size, or because it is fixed).
pub(crate) unsafe trait Message {
    /// The request's number.
    const REQUEST: libc::Ioctl;
}

fn answer(result: libc::c_int) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Sends a message. What it tells the kernel to do to this process (memory to map, descriptors to raise) is up to whoever fills it in.
pub(crate) fn call<M: Message>(fd: BorrowedFd<'_>, message: &mut M) -> io::Result<i32> {
    // SAFETY: the descriptor is open; `message` is exclusively borrowed and, by the promise of `Message`, what the kernel expects for
    // this request.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), M::REQUEST, std::ptr::from_mut(message)) })
}

fn call_with(fd: BorrowedFd<'_>, request: libc::Ioctl, value: c_ulong) -> io::Result<i32> {
    // SAFETY: the descriptor is open, and the requests that this is used with take a number or nothing.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

pub(crate) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    call_with(container, GET_API_VERSION, 0)
}

pub(crate) fn has_extension(container: BorrowedFd<'_>, extension: c_ulong) -> bool {
    call_with(container, CHECK_EXTENSION, extension).is_ok_and(|has| has != 0)
}

pub(crate) fn set_iommu(container: BorrowedFd<'_>, model: c_ulong) -> io::Result<()> {
    call_with(container, SET_IOMMU, model).map(drop)
}

pub(crate) fn unset_container(group: BorrowedFd<'_>) -> io::Result<()> {
    call_with(group, UNSET_CONTAINER, 0).map(drop)
}

pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    call_with(device, DEVICE_RESET, 0).map(drop)
}

/// Opens a device of a group by its name.
pub(crate) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open, and this request reads a string that ends with a zero byte.
    let fd = answer(unsafe { libc::ioctl(group.as_raw_fd(), GET_DEVICE_FD, name.as_ptr()) })?;
    Ok(own(fd))
}

/// Owns a descriptor that the kernel has just made for this process.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel returned it as new a moment ago, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Size of a message, as the kernel wants it in the first field.
pub(crate) const fn size<M>() -> u32 {
    let size = size_of::<M>();
    assert!(size <= 0x1_0000, "messages are small");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let size = size as u32;
    size
}

macro_rules! message {
    ($(#[$meta:meta])* $name:ident = $number:literal { $($field:ident: $kind:ty,)* } is $bytes:literal bytes) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        #[repr(C)]
        pub(crate) struct $name {
            $(pub(crate) $field: $kind,)*
        }
        // Without padding: the fields' sizes add up.
        const _: () = assert!(size_of::<$name>() == $bytes && 0 $(+ size_of::<$kind>())* == $bytes);
        // SAFETY: integers alone, laid out as the kernel documents it, without padding; the kernel keeps to the size in the first field,
        // or takes a single number.
        unsafe impl Message for $name {
            const REQUEST: libc::Ioctl = request($number);
        }
    };
}

message! {
    /// Whether a group can be used.
    GroupStatus = 103 { argsz: u32, flags: u32, } is 8 bytes
}
impl GroupStatus {
    pub(crate) const VIABLE: u32 = 1;
}
message! {
    /// Puts a group into a container.
    GroupSetContainer = 104 { container: i32, } is 4 bytes
}
message! {
    /// What a device has.
    DeviceInfo = 107 { argsz: u32, flags: u32, num_regions: u32, num_irqs: u32, cap_offset: u32, pad: u32, } is 24 bytes
}
impl DeviceInfo {
    pub(crate) const RESET: u32 = 1;
    pub(crate) const PCI: u32 = 2;
}
message! {
    /// Where a region of a device is in its descriptor, and capabilities behind it.
    RegionInfo = 108 {
        argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64, caps: [u64; 124],
    } is 1024 bytes
}
impl RegionInfo {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const MMAP: u32 = 4;
    pub(crate) const CAPS: u32 = 8;
    /// Region of configuration space.
    pub(crate) const CONFIG: u32 = 7;
    /// Parts of the region that can be mapped, if not all.
    pub(crate) const CAP_SPARSE_MMAP: u16 = 1;
    const HEAD: usize = 32;

    /// The body of a capability, from behind its header.
    pub(crate) fn capability(&self, id: u16) -> Option<Vec<u8>> {
        let has = self.flags & Self::CAPS != 0;
        has.then(|| capability(&self.caps, Self::HEAD, self.cap_offset, id))?
    }
}
message! {
    /// How many interrupts there are of a kind.
    IrqInfo = 109 { argsz: u32, flags: u32, index: u32, count: u32, } is 16 bytes
}
impl IrqInfo {
    pub(crate) const EVENTFD: u32 = 1;
}
/// Most vectors of MSI-X (PCIe Base 6.0 §7.7.2).
pub(crate) const MOST_VECTORS: usize = 2048;
message! {
    /// Ties interrupts to event descriptors, or unties them.
    IrqSet = 110 {
        argsz: u32, flags: u32, index: u32, start: u32, count: u32, fds: [i32; MOST_VECTORS],
    } is 8212 bytes
}
impl IrqSet {
    pub(crate) const MSI: u32 = 1;
    pub(crate) const MSIX: u32 = 2;
    pub(crate) const ERROR: u32 = 3;
    pub(crate) const REQUEST: u32 = 4;
    pub(crate) const DATA_NONE: u32 = 1;
    pub(crate) const DATA_EVENTFD: u32 = 4;
    pub(crate) const TRIGGER: u32 = 1 << 5;
    /// Bytes before the descriptors.
    pub(crate) const HEAD: u32 = 20;
}

const FEATURE_SET: u32 = 1 << 17;
const FEATURE_GET: u32 = 1 << 16;
const FEATURE_VF_TOKEN: u32 = 0;
const FEATURE_DMA_BUF: u32 = 11;

message! {
    /// Sets the token that users of virtual functions have to know.
    FeatureVfToken = 117 { argsz: u32, flags: u32, uuid: [u8; 16], } is 24 bytes
}
impl FeatureVfToken {
    pub(crate) const FLAGS: u32 = FEATURE_SET | FEATURE_VF_TOKEN;
}
message! {
    /// Exports a range of a region as a dma-buf.
    FeatureDmaBuf = 117 {
        argsz: u32, flags: u32, region_index: u32, open_flags: u32, buffer_flags: u32, nr_ranges: u32, offset: u64, length: u64,
    } is 40 bytes
}
impl FeatureDmaBuf {
    pub(crate) const FLAGS: u32 = FEATURE_GET | FEATURE_DMA_BUF;
}
message! {
    /// Binds a character device to an iommufd.
    BindIommufd = 118 { argsz: u32, flags: u32, iommufd: i32, out_devid: u32, token_pointer: u64, } is 24 bytes
}
impl BindIommufd {
    /// `token_pointer` points to a token of 16 bytes.
    pub(crate) const TOKEN: u32 = 1;
}
message! {
    /// Puts a bound device into an address space.
    AttachIommufd = 119 { argsz: u32, flags: u32, pt_id: u32, } is 12 bytes
}

message! {
    /// What the IOMMU of a container can do, and capabilities behind it.
    Type1Info = 112 { argsz: u32, flags: u32, pgsizes: u64, cap_offset: u32, pad: u32, caps: [u64; 1021], } is 8192 bytes
}
impl Type1Info {
    pub(crate) const PGSIZES: u32 = 1;
    pub(crate) const CAPS: u32 = 2;
    pub(crate) const CAP_IOVA_RANGE: u16 = 1;
    const HEAD: usize = 24;

    pub(crate) fn capability(&self, id: u16) -> Option<Vec<u8>> {
        let has = self.flags & Self::CAPS != 0;
        has.then(|| capability(&self.caps, Self::HEAD, self.cap_offset, id))?
    }
}
message! {
    /// Maps memory of this process into a container.
    Type1Map = 113 { argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64, } is 32 bytes
}
impl Type1Map {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
}
message! {
    /// Takes a mapping out of a container; `size` becomes what was unmapped.
    Type1Unmap = 114 { argsz: u32, flags: u32, iova: u64, size: u64, } is 24 bytes
}

message! {
    /// Makes an address space.
    IoasAlloc = 0x81 { size: u32, flags: u32, out_ioas_id: u32, } is 12 bytes
}
message! {
    /// Maps memory of this process into an address space.
    IoasMap = 0x85 {
        size: u32, flags: u32, ioas_id: u32, reserved: u32, user_va: u64, length: u64, iova: u64,
    } is 40 bytes
}
impl IoasMap {
    pub(crate) const FIXED_IOVA: u32 = 1;
    pub(crate) const WRITEABLE: u32 = 2;
    pub(crate) const READABLE: u32 = 4;
}
message! {
    /// Takes a mapping out of an address space; `length` becomes what was unmapped.
    IoasUnmap = 0x86 { size: u32, ioas_id: u32, iova: u64, length: u64, } is 24 bytes
}
message! {
    /// Maps a file (a memfd or a dma-buf) into an address space.
    IoasMapFile = 0x8f {
        size: u32, flags: u32, ioas_id: u32, fd: i32, start: u64, length: u64, iova: u64,
    } is 40 bytes
}

/// Which addresses an address space may use. Not a [`Message`] by itself, because the kernel writes through `allowed_iovas`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

/// First and last address of each usable range, and the alignment that mappings need.
pub(crate) fn ioas_ranges(iommufd: BorrowedFd<'_>, ioas_id: u32) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let mut ranges = vec![[0_u64; 2]; 64];
    loop {
        let mut message = IoasIovaRanges {
            size: size::<IoasIovaRanges>(),
            ioas_id,
            num_iovas: u32::try_from(ranges.len()).map_err(io::Error::other)?,
            reserved: 0,
            allowed_iovas: ranges.as_mut_ptr() as u64,
            out_iova_alignment: 0,
        };
        // SAFETY: the descriptor is open; the message is this request's, tells its own size, and points to room for as many pairs of
        // numbers as it says.
        let result = answer(unsafe {
            libc::ioctl(
                iommufd.as_raw_fd(),
                request(0x84),
                std::ptr::from_mut(&mut message),
            )
        });
        let count = message.num_iovas as usize;
        match result {
            Ok(_) => {
                let found = ranges.iter().take(count).map(|[start, last]| (*start, *last));
                return Ok((found.collect(), message.out_iova_alignment));
            }
            // There are more than there was room for.
            Err(error)
                if error.raw_os_error() == Some(libc::EMSGSIZE)
                    && (ranges.len()..=65536).contains(&count) =>
            {
                ranges.resize(count + 1, [0; 2]);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The body of a capability in a chain. `head` is how many bytes of the message come before `caps`; offsets count from the message's start.
fn capability(caps: &[u64], head: usize, first: u32, id: u16) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = caps.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut at = first as usize;
    // Each header takes 8 bytes, so there are no more than this, whatever they say.
    for _ in 0..caps.len() {
        let header = bytes.get(at.checked_sub(head)?..)?;
        let found = u16::from_ne_bytes(header.get(..2)?.try_into().ok()?);
        let next = u32::from_ne_bytes(header.get(4..8)?.try_into().ok()?);
        if found == id {
            return Some(header.get(8..)?.to_vec());
        }
        if next == 0 {
            return None;
        }
        at = next as usize;
    }
    None
}

/// Pairs of numbers in a capability's body: a count of 4 bytes, 4 reserved ones, then the pairs.
pub(crate) fn pairs(body: &[u8]) -> Option<Vec<(u64, u64)>> {
    let count = u32::from_ne_bytes(body.get(..4)?.try_into().ok()?) as usize;
    let pairs = body.get(8..8_usize.checked_add(count.checked_mul(16)?)?)?;
    let number = |bytes: &[u8]| Some(u64::from_ne_bytes(bytes.try_into().ok()?));
    pairs
        .chunks_exact(16)
        .map(|pair| Some((number(pair.get(..8)?)?, number(pair.get(8..)?)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_found_and_circles_end() {
        let mut caps = [0_u64; 16];
        let header = |id: u16, next: u32| {
            u64::from_ne_bytes({
                let mut bytes = [0; 8];
                bytes[..2].copy_from_slice(&id.to_ne_bytes());
                bytes[4..].copy_from_slice(&next.to_ne_bytes());
                bytes
            })
        };
        caps[0] = header(3, 32 + 16);
        caps[2] = header(1, 0);
        caps[3] = u64::from_ne_bytes(*b"\x02\0\0\0\0\0\0\0");
        caps[4..8].copy_from_slice(&[0, 0x2000, 0x3000, 0x1000]);
        let mut body = vec![];
        body.extend(capability(&caps, 32, 32, 1).unwrap());
        assert_eq!(pairs(&body), Some(vec![(0, 0x2000), (0x3000, 0x1000)]));
        assert_eq!(capability(&caps, 32, 32, 9), None);
        assert_eq!(capability(&caps, 32, 8, 1), None);
        assert_eq!(capability(&caps, 32, 4000, 1), None);
        caps[2] = header(4, 32);
        assert_eq!(capability(&caps, 32, 32, 1), None);
        assert_eq!(pairs(&body[..20]), None);
        assert_eq!(pairs(&[0xff; 64]), None);
    }
}
