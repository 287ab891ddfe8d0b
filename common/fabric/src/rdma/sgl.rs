//! Where a command capsule says that its data is: RDMA Transport 1.0 §3.1.2 and Base 2.0 §4.1.2.
//!
//! One keyed data block in the command, a list of keyed data blocks in the capsule (a last segment descriptor with an
//! offset), or data in the capsule. Offsets count from the byte after the command: ICDOFF is 0.

use homi_queue::{RemoteAddress, RemoteKey, Segment};
use homi_spec::command::TransferDirection;
use homi_spec::status::Status;
use homi_spec::{Sgl, SglDescriptor, Sqe};

use super::work::Remote;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;
/// Type and subtype of a last segment descriptor whose address is an offset into the capsule.
const LAST_SEGMENT: u8 = 0x3;
const OFFSET: u8 = 0x1;

/// The most descriptors that a list can be allowed to have.
pub(super) const MAX_DESCRIPTORS: u16 = 256;

/// A last segment descriptor for a list `offset` bytes into the capsule's data.
pub(super) fn capsule_list(offset: u64, len: u32) -> Sgl {
    let mut sgl = Sgl::data_block(offset, len);
    if let Some(id) = sgl.0.last_mut() {
        *id = LAST_SEGMENT << 4 | OFFSET;
    }
    sgl
}

/// What a command offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// Bytes of remote memory, or in the capsule.
    pub(super) bytes: u32,
    /// The data is in the capsule, so many bytes into its data.
    pub(super) in_capsule: Option<usize>,
    /// The key that the response may invalidate.
    pub(super) invalidate: Option<RemoteKey>,
    /// One descriptor that says how much data there is, for those who check the command.
    pub(super) summary: Sgl,
}

impl Offer {
    /// What a command offers whose descriptor is not to be followed.
    pub(super) fn nothing(sqe: &Sqe) -> Self {
        Self {
            bytes: 0,
            in_capsule: None,
            invalidate: None,
            summary: sqe.sgl(),
        }
    }
}

/// Which way a command's opcode moves data.
pub(super) fn direction(sqe: &Sqe) -> TransferDirection {
    match sqe.fabrics_type() {
        Some(fabrics_type) => TransferDirection::of(fabrics_type.raw()),
        None => TransferDirection::of(sqe.opcode),
    }
}

/// Follows a command's descriptor, and puts remote memory into `remotes` in the order of the transfer. `received` bytes came after
/// the command, into `data`; what lies behind them is an earlier capsule's and is never looked at.
///
/// # Errors
/// The status to complete the command with.
pub(super) fn follow(
    sqe: &Sqe,
    data: Option<&Segment>,
    received: u32,
    max_descriptors: u16,
    remotes: &mut Vec<Remote>,
) -> Result<Offer, Status> {
    let mut offer = Offer::nothing(sqe);
    match sqe.sgl().parse() {
        SglDescriptor::Keyed {
            address,
            length,
            key,
            invalidate,
        } => add(&mut offer, remotes, address, length, key, invalidate)?,
        SglDescriptor::InCapsule { length: 0, .. } | SglDescriptor::DataBlock { length: 0, .. } => {}
        SglDescriptor::InCapsule { offset, length } => {
            if direction(sqe) != TransferDirection::HostToController {
                return Err(Status::SGL_TYPE_INVALID.with_dnr());
            }
            offer.in_capsule = Some(inside(offset, length, received)?);
            offer.bytes = length;
        }
        SglDescriptor::Unknown {
            type_: LAST_SEGMENT,
            subtype: OFFSET,
            raw,
        } => {
            let (offset, length) = list_of(raw);
            if length == 0 || !length.is_multiple_of(DESCRIPTOR) {
                return Err(Status::SGL_INVALID_SEGMENT.with_dnr());
            }
            if length / DESCRIPTOR > u32::from(max_descriptors) {
                return Err(Status::SGL_INVALID_COUNT.with_dnr());
            }
            let start = inside(offset, length, received)?;
            let memory = data.ok_or(Status::SGL_OFFSET_INVALID.with_dnr())?;
            for at in (start..start + length as usize).step_by(DESCRIPTOR as usize) {
                let mut descriptor = Sgl::default();
                let part = memory.part(at, descriptor.0.len());
                let read = part.and_then(|part| part.region().read(part.start(), &mut descriptor.0));
                read.map_err(|_| Status::SGL_OFFSET_INVALID.with_dnr())?;
                let SglDescriptor::Keyed {
                    address,
                    length,
                    key,
                    invalidate,
                } = descriptor.parse()
                else {
                    return Err(Status::SGL_TYPE_INVALID.with_dnr());
                };
                add(&mut offer, remotes, address, length, key, invalidate)?;
            }
            offer.summary = Sgl::transport(offer.bytes);
        }
        _ if direction(sqe) == TransferDirection::None => {}
        _ => return Err(Status::SGL_TYPE_INVALID.with_dnr()),
    }
    Ok(offer)
}

/// Offset and length of a last segment in the capsule: laid out as a data block's.
fn list_of(raw: Sgl) -> (u64, u32) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = raw.0;
    (
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u32::from_le_bytes([i, j, k, l]),
    )
}

/// Checks that bytes of the capsule's data have come.
fn inside(offset: u64, length: u32, received: u32) -> Result<usize, Status> {
    match offset.checked_add(length.into()) {
        Some(end) if end <= u64::from(received) => {
            usize::try_from(offset).map_err(|_| Status::SGL_OFFSET_INVALID.with_dnr())
        }
        _ => Err(Status::SGL_OFFSET_INVALID.with_dnr()),
    }
}

fn add(
    offer: &mut Offer,
    remotes: &mut Vec<Remote>,
    address: u64,
    len: u32,
    key: u32,
    invalidate: bool,
) -> Result<(), Status> {
    let (address, key) = (RemoteAddress(address), RemoteKey(key));
    // Base 2.0 §4.1.2: an empty block is legal and is how commands without data are sent; its key means nothing.
    if len == 0 {
        return Ok(());
    }
    if address.checked_add(u64::from(len) - 1).is_none() {
        return Err(Status::DATA_TRANSFER_ERROR.with_dnr());
    }
    offer.bytes = offer
        .bytes
        .checked_add(len)
        .ok_or(Status::SGL_DATA_LENGTH_INVALID.with_dnr())?;
    if invalidate {
        // A response can invalidate one key.
        offer.invalidate.get_or_insert(key);
    }
    remotes.push(Remote { address, key, len });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use homi_queue::Region;
    use homi_spec::command::NvmOpcode;
    use proptest::prelude::*;

    fn command(opcode: NvmOpcode, sgl: Sgl) -> Sqe {
        let mut sqe = Sqe::new(opcode.raw(), 1);
        sqe.set_sgl(sgl);
        sqe
    }

    fn capsule(descriptors: &[Sgl]) -> Segment {
        let mut bytes: Vec<u8> = descriptors.iter().flat_map(|sgl| sgl.0).collect();
        bytes.resize(512, 0xee);
        let len = bytes.len();
        Region::from_vec(bytes).segment(0..len).unwrap()
    }

    fn followed(sqe: &Sqe, data: &Segment, received: u32, max: u16) -> Result<(Offer, Vec<Remote>), Status> {
        let mut remotes = Vec::new();
        follow(sqe, Some(data), received, max, &mut remotes).map(|offer| (offer, remotes))
    }

    #[test]
    fn one_keyed_block() {
        let sgl = Sgl::keyed(0x1000, 4096, 9, true).unwrap();
        let (offer, remotes) = followed(&command(NvmOpcode::READ, sgl), &capsule(&[]), 0, 1).unwrap();
        assert_eq!(
            (offer.bytes, offer.invalidate, offer.summary),
            (4096, Some(RemoteKey(9)), sgl)
        );
        let remote = Remote {
            address: RemoteAddress(0x1000),
            key: RemoteKey(9),
            len: 4096,
        };
        assert_eq!(remotes, [remote]);
        let plain = Sgl::keyed(0x1000, 4096, 9, false).unwrap();
        let (offer, _) = followed(&command(NvmOpcode::READ, plain), &capsule(&[]), 0, 1).unwrap();
        assert_eq!(offer.invalidate, None);
        // How hosts send commands without data; the key must not be invalidated.
        let null = Sgl::keyed(0, 0, 0, true).unwrap();
        let (offer, remotes) = followed(&command(NvmOpcode::FLUSH, null), &capsule(&[]), 0, 1).unwrap();
        assert_eq!((offer.bytes, offer.invalidate, remotes.len()), (0, None, 0));
    }

    #[test]
    fn a_list_in_the_capsule() {
        let keyed = |address, len, invalidate| Sgl::keyed(address, len, 5, invalidate).unwrap();
        let data = capsule(&[keyed(0, 512, false), keyed(0, 0, true), keyed(0x9000, 1024, true)]);
        let list = command(NvmOpcode::WRITE, capsule_list(0, 48));
        let (offer, remotes) = followed(&list, &data, 48, 3).unwrap();
        assert_eq!((offer.bytes, remotes.len()), (1536, 2));
        assert_eq!(offer.summary, Sgl::transport(1536));
        assert_eq!(offer.invalidate, Some(RemoteKey(5)));
        let tail = command(NvmOpcode::WRITE, capsule_list(32, 16));
        assert_eq!(followed(&tail, &data, 48, 1).unwrap().0.bytes, 1024);

        let status = |offset, length, received, max| {
            let sqe = command(NvmOpcode::WRITE, capsule_list(offset, length));
            followed(&sqe, &data, received, max).unwrap_err().code()
        };
        assert_eq!(status(0, 48, 48, 2), Status::SGL_INVALID_COUNT);
        assert_eq!(status(0, 0, 48, 3), Status::SGL_INVALID_SEGMENT);
        assert_eq!(status(0, 40, 48, 3), Status::SGL_INVALID_SEGMENT);
        // What lies behind the bytes that came is an earlier capsule's.
        assert_eq!(status(0, 48, 47, 3), Status::SGL_OFFSET_INVALID);
        assert_eq!(status(u64::MAX, 16, 48, 3), Status::SGL_OFFSET_INVALID);
        assert_eq!(status(48, 16, 64, 3), Status::SGL_TYPE_INVALID);
        assert_eq!(status(0, 0xffff_fff0, 48, 3), Status::SGL_INVALID_COUNT);
    }

    #[test]
    fn data_in_the_capsule_must_have_come() {
        let data = capsule(&[]);
        let status = |opcode, offset, length, received| {
            followed(
                &command(opcode, Sgl::in_capsule(offset, length)),
                &data,
                received,
                1,
            )
            .map(|(offer, _)| (offer.in_capsule, offer.bytes))
            .map_err(|status| status.code())
        };
        assert_eq!(status(NvmOpcode::WRITE, 0, 512, 512), Ok((Some(0), 512)));
        assert_eq!(status(NvmOpcode::WRITE, 100, 412, 512), Ok((Some(100), 412)));
        assert_eq!(
            status(NvmOpcode::WRITE, 100, 413, 512),
            Err(Status::SGL_OFFSET_INVALID)
        );
        assert_eq!(
            status(NvmOpcode::WRITE, u64::MAX, 1, 512),
            Err(Status::SGL_OFFSET_INVALID)
        );
        assert_eq!(
            status(NvmOpcode::READ, 0, 512, 512),
            Err(Status::SGL_TYPE_INVALID)
        );
    }

    #[test]
    fn descriptors_of_other_transports_are_refused() {
        for sgl in [
            Sgl::data_block(0x1000, 512),
            Sgl::transport(512),
            Sgl([0xff; 16]),
            SglDescriptor::LastSegment {
                address: 0,
                length: 16,
            }
            .encode()
            .unwrap(),
            SglDescriptor::Segment {
                address: 0,
                length: 16,
            }
            .encode()
            .unwrap(),
            SglDescriptor::BitBucket { length: 16 }.encode().unwrap(),
        ] {
            let refused = followed(&command(NvmOpcode::WRITE, sgl), &capsule(&[]), 512, 4);
            assert_eq!(refused.unwrap_err().code(), Status::SGL_TYPE_INVALID);
            assert!(followed(&command(NvmOpcode::FLUSH, sgl), &capsule(&[]), 0, 4).is_ok());
        }
        let wraps = Sgl::keyed(u64::MAX - 10, 512, 1, false).unwrap();
        let refused = followed(&command(NvmOpcode::WRITE, wraps), &capsule(&[]), 0, 1);
        assert_eq!(refused.unwrap_err().code(), Status::DATA_TRANSFER_ERROR);
    }

    proptest! {
        #[test]
        fn any_descriptor_is_bounded(
            raw: [u8; 16],
            kind in prop_oneof![Just(0x31_u8), Just(0x01), Just(0x40), Just(0x4f), any::<u8>()],
            short in any::<bool>(),
            content in proptest::collection::vec(any::<[u8; 15]>(), 32),
            received in 0_u32..=512,
        ) {
            let mut raw = raw;
            raw[15] = kind;
            if short {
                raw[1..8].fill(0);
                raw[9..12].fill(0);
            }
            let list: Vec<Sgl> = content.iter().map(|bytes| {
                let mut sgl = [0x4f; 16];
                sgl[..15].copy_from_slice(bytes);
                Sgl(sgl)
            }).collect();
            let sqe = command(NvmOpcode::WRITE, Sgl(raw));
            if let Ok((offer, remotes)) = followed(&sqe, &capsule(&list), received, 8) {
                prop_assert!(remotes.len() <= 8);
                if let Some(at) = offer.in_capsule {
                    prop_assert!(at + offer.bytes as usize <= received as usize);
                } else {
                    prop_assert_eq!(remotes.iter().map(|remote| u64::from(remote.len)).sum::<u64>(), u64::from(offer.bytes));
                }
            }
        }
    }
}
