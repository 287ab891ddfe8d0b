//! Every parser of the wire types: nothing panics, and what was understood is written back as the same thing.

use homi_spec::auth::{AuthHeader, Challenge, Failure, Negotiate, Reply, Success1};
use homi_spec::event::AsyncEvent;
use homi_spec::fabrics::{
    Authentication, ConnectCommand, ConnectData, ConnectResponse, Disconnect, PropertyGet, PropertySet,
};
use homi_spec::feature::{GetFeatures, NumberOfQueues, SetFeatures};
use homi_spec::identify::{
    ControllerList, Identify, IdentifyController, IdentifyNamespace, NamespaceDescriptors, NamespaceList,
};
use homi_spec::log::{AnaGroups, DiscoveryEntry, ErrorLogEntry, GetLogPage};
use homi_spec::nvm::{BlockCommand, DatasetManagement};
use homi_spec::tcp::TermReq;
use homi_spec::{Cqe, Nqn, Sgl, Sqe, Status, admin, text};
use zerocopy::{FromBytes, IntoBytes};

use super::Reached;
use super::choices::Choices;

/// See [`spec`](super::spec).
pub(super) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    let understood = match choices.below(4) {
        0 => entry(&Sqe::read_from_bytes(&choices.array::<64>()).expect("64 bytes are an entry")),
        1 => completion(&mut choices),
        2 => pages(choices.rest()),
        _ => variable(choices.rest()),
    };
    Reached {
        transfers: usize::from(understood),
        failures: usize::from(!understood),
        ..Reached::default()
    }
}

/// Reads a value, writes it and reads it again.
macro_rules! same_again {
    ($sqe:expr, $understood:expr, $($type:ty => $write:expr),+ $(,)?) => {$(
        if let Some(value) = <$type>::from_sqe($sqe) {
            $understood = true;
            let write: fn($type, &Sqe) -> Sqe = $write;
            let written = write(value, $sqe);
            assert_eq!(written.cid, $sqe.cid);
            assert_eq!(<$type>::from_sqe(&written), Some(value));
        }
    )+};
}

fn entry(sqe: &Sqe) -> bool {
    let mut understood = false;
    let cid = |sqe: &Sqe| sqe.cid.get();
    assert_eq!(cid(sqe), sqe.cid.get());
    same_again!(sqe, understood,
        ConnectCommand => |value, sqe| value.to_sqe(sqe.cid.get(), sqe.sgl()),
        Disconnect => |value, sqe| value.to_sqe(sqe.cid.get()),
        PropertyGet => |value, sqe| value.to_sqe(sqe.cid.get()),
        PropertySet => |value, sqe| value.to_sqe(sqe.cid.get()),
        Authentication => |value, sqe| value.to_sqe(sqe.cid.get(), sqe.sgl()),
        Identify => |value, sqe| value.to_sqe(sqe.cid.get()),
        GetLogPage => |value, sqe| value.to_sqe(sqe.cid.get()),
        GetFeatures => |value, sqe| value.to_sqe(sqe.cid.get()),
        SetFeatures => |value, sqe| value.to_sqe(sqe.cid.get()),
        BlockCommand => |value, sqe| value.to_sqe(sqe.cid.get()),
        DatasetManagement => |value, sqe| value.to_sqe(sqe.cid.get()),
        admin::Abort => |value, sqe| value.to_sqe(sqe.cid.get()),
        admin::CreateIoCq => |value, sqe| value.to_sqe(sqe.cid.get()),
        admin::CreateIoSq => |value, sqe| value.to_sqe(sqe.cid.get()),
        admin::DeleteIoQueue => |value, sqe| value.to_sqe(sqe.cid.get()),
    );
    let sgl = sqe.sgl();
    let descriptor = sgl.parse();
    let written = descriptor.encode().expect("what was parsed can be encoded");
    assert_eq!(written.parse(), descriptor);
    let mut other = *sqe;
    other.set_sgl(Sgl::transport(1));
    other.set_sgl(written);
    assert_eq!(other.sgl().parse(), descriptor);
    let mut blocks = *sqe;
    blocks.set_lba(sqe.lba());
    assert_eq!(blocks.set_blocks(sqe.blocks()), Ok(()));
    assert_eq!((blocks.lba(), blocks.blocks()), (sqe.lba(), sqe.blocks()));
    assert!(!format!("{sqe:?} {} {}", sqe.admin_opcode(), sqe.nvm_opcode()).is_empty());
    understood
}

fn completion(choices: &mut Choices<'_>) -> bool {
    let cqe = Cqe::read_from_bytes(&choices.array::<16>()).expect("16 bytes are an entry");
    let status = cqe.status();
    assert_eq!(Status::from_raw(status.raw()), status);
    let mut again = cqe;
    again.set_status(status);
    assert_eq!(again, cqe);
    assert_eq!(Status::from_wire(status.to_wire(cqe.phase())), status);
    assert!(!status.to_string().contains('\n'));
    assert_eq!(cqe.with_result64(cqe.result64()), cqe);
    let response = ConnectResponse::from_cqe(&cqe);
    let mut written = Cqe::new(cqe.cid.get());
    response.apply(&mut written);
    assert_eq!(ConnectResponse::from_cqe(&written), response);
    let dword = cqe.dw0.get();
    let event = AsyncEvent::from_dword(dword);
    assert_eq!(AsyncEvent::from_dword(event.to_dword()), event);
    let queues = NumberOfQueues::from_dword(dword);
    assert_eq!(queues.to_dword(), dword);
    assert!((1..=65536).contains(&queues.queue_pairs()));
    status.is_success()
}

/// Bytes as a page of one type: cut, or padded with zeroes.
fn page<T: FromBytes>(bytes: &[u8]) -> T {
    let mut whole = vec![0; size_of::<T>()];
    for (to, from) in whole.iter_mut().zip(bytes) {
        *to = *from;
    }
    T::read_from_bytes(&whole)
        .map_err(|_| ())
        .expect("every page of the right length is valid")
}

fn pages(bytes: &[u8]) -> bool {
    let controller: IdentifyController = page(bytes);
    for text in [controller.serial(), controller.model(), controller.firmware()]
        .into_iter()
        .flatten()
    {
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
    assert!(controller.max_transfer(0).is_none_or(|bytes| bytes >= 4096));
    assert!(controller.in_capsule_data().is_none_or(|bytes| bytes < 1 << 36));
    let named = controller.subsystem_nqn().is_ok();
    let namespace: IdentifyNamespace = page(bytes);
    if let Some(format) = namespace.format() {
        assert!(format.block_size().is_none_or(u32::is_power_of_two));
    }
    assert!(page::<NamespaceList>(bytes).iter().all(|nsid| nsid != 0));
    assert!(page::<ControllerList>(bytes).iter().count() <= 2047);
    let entry: DiscoveryEntry = page(bytes);
    for text in [entry.address(), entry.service()].into_iter().flatten() {
        assert!(!text.chars().any(char::is_control));
    }
    assert_eq!(
        Status::from_raw(page::<ErrorLogEntry>(bytes).status().raw()),
        page::<ErrorLogEntry>(bytes).status()
    );
    assert!(!page::<TermReq>(bytes).fatal_error().to_string().is_empty());
    let connect: ConnectData = page(bytes);
    let mut good = named || entry.subsystem_nqn().is_ok();
    for field in [&connect.subnqn, &connect.hostnqn] {
        if let Ok(name) = Nqn::from_field_lenient(field) {
            good = true;
            assert_eq!(name.to_field(), *field);
            assert_eq!(Nqn::from_field(field).is_ok(), name.is_well_formed());
        }
    }
    assert!(!format!("{connect:?}{controller:?}{namespace:?}{entry:?}").is_empty());
    good
}

fn variable(bytes: &[u8]) -> bool {
    let mut understood = 0;
    let mut count = |good: bool| understood += usize::from(good);
    if let Ok(header) = AuthHeader::parse(bytes) {
        assert!(bytes.starts_with(header.as_bytes()));
    }
    if let Ok((negotiate, protocols)) = Negotiate::parse(bytes) {
        count(true);
        assert!(size_of_val(negotiate) + size_of_val(protocols) <= bytes.len());
        for protocol in protocols {
            assert!(protocol.hashes().len() <= 30 && protocol.groups().len() <= 30);
        }
    }
    if let Ok((challenge, one, two)) = Challenge::parse(bytes) {
        count(true);
        assert!(size_of_val(challenge) + one.len() + two.len() <= bytes.len());
    }
    count(Reply::parse(bytes).is_ok());
    if let Ok((success, response)) = Success1::parse(bytes) {
        count(true);
        assert!(size_of_val(success) + response.len() <= bytes.len());
    }
    count(Failure::parse(bytes).is_ok());
    let mut list = vec![0; bytes.len() + 16];
    let mut at = 0;
    let ids: Vec<_> = NamespaceDescriptors::new(bytes).map_while(Result::ok).collect();
    for id in &ids {
        count(true);
        at += id
            .write(list.get_mut(at..).unwrap_or(&mut []))
            .expect("it came from fewer bytes");
    }
    let again: Vec<_> = NamespaceDescriptors::new(list.get(..at).unwrap_or(&[]))
        .map_while(Result::ok)
        .collect();
    assert_eq!(again, ids);
    if let Ok((_, groups)) = AnaGroups::new(bytes) {
        let nsids: usize = groups.map_while(Result::ok).map(|group| group.nsids.len()).sum();
        assert!(nsids * 4 <= bytes.len());
    }
    if let Some(text) = text::ascii(bytes) {
        count(true);
        let mut field = vec![0; bytes.len()];
        assert_eq!(text::set_ascii(&mut field, text), Ok(()));
        assert_eq!(text::ascii(&field), Some(text));
    }
    if let Some(text) = text::nul_padded(bytes) {
        let mut field = vec![1; bytes.len() + 1];
        assert_eq!(text::set_nul_padded(&mut field, text), Ok(()));
        assert_eq!(text::nul_padded(&field), Some(text));
    }
    understood > 0
}
