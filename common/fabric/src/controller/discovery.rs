//! The discovery log: which ways there are for a host to the subsystems that it may connect to. Base 2.0 §5.16.1.23.
//!
//! The log is made anew for each read, and only as much of it as is read; its generation says whether two reads belong
//! to the same log.

use super::config::{PortId, RdmaProvider, SecureChannel, TransportAddress, TransportKind};
use super::node::Directory;
use homi_spec::fabrics::CNTLID_DYNAMIC;
use homi_spec::log::{
    self, AddressFamily, DiscoveryEntry, DiscoveryHeader, SubsystemType, TransportType, treq,
};
use homi_spec::{Nqn, U16};
use std::net::IpAddr;
use zerocopy::IntoBytes;

/// Bytes of the header and of each entry.
const RECORD_SIZE: usize = 1024;

/// One entry of the log, before it is put in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) subsystem: Nqn,
    pub(super) kind: SubsystemType,
    pub(super) address: TransportAddress,
    pub(super) port: PortId,
    pub(super) secure_channel: SecureChannel,
}

/// What a host sees, in a fixed order: ports by number, on each the subsystems by name, then referrals. `local` is the
/// address that the host reached the node at; it stands in for ports that listen at every address.
pub(super) fn records(directory: &Directory, host: &Nqn, local: Option<IpAddr>) -> Vec<Record> {
    let mut records = Vec::new();
    for port in directory.ports.values() {
        let Some(address) = reachable(port.address, local) else {
            continue;
        };
        for subsystem in directory.subsystems.values() {
            if subsystem.config.exposure.includes(port.id) && subsystem.config.allow.allows(host) {
                records.push(Record {
                    subsystem: subsystem.config.nqn.clone(),
                    kind: SubsystemType::NVM,
                    address,
                    port: port.id,
                    secure_channel: port.secure_channel,
                });
            }
        }
    }
    records.extend(directory.referrals.iter().map(|referral| Record {
        subsystem: referral.subsystem.clone(),
        kind: SubsystemType::DISCOVERY_REFERRAL,
        address: referral.address,
        port: referral.port,
        secure_channel: referral.secure_channel,
    }));
    records
}

/// Where a host that came to `local` finds the port; `None` where it cannot, since the port listens at every address of
/// the other family.
fn reachable(port: TransportAddress, local: Option<IpAddr>) -> Option<TransportAddress> {
    let Some(local) = local.filter(|_| port.address.is_unspecified()) else {
        return Some(port);
    };
    // A socket that listens at `::` takes IPv4 too; RDMA's connection manager does not.
    let both = port.address.is_ipv6() && port.transport == TransportKind::Tcp;
    (both || port.address.is_ipv6() == local.is_ipv6()).then_some(TransportAddress {
        address: local,
        ..port
    })
}

/// `len` bytes of the log from `offset` on; zeroes past its end. `None` if the offset itself is past the end.
pub(super) fn window(
    records: &[Record],
    generation: u64,
    admin_entries: u16,
    offset: u64,
    len: usize,
) -> Option<Vec<u8>> {
    let offset = usize::try_from(offset).ok()?;
    let total = records.len().checked_add(1)?.checked_mul(RECORD_SIZE)?;
    if offset > total {
        return None;
    }
    let mut bytes = vec![0; len];
    let count = u64::try_from(records.len()).ok()?;
    let end = offset.saturating_add(len);
    if offset < RECORD_SIZE {
        overlay(
            &mut bytes,
            offset,
            0,
            DiscoveryHeader::new(generation, count).as_bytes(),
        );
    }
    let first = (offset / RECORD_SIZE).saturating_sub(1);
    for (index, record) in records.iter().enumerate().skip(first) {
        let start = (index + 1) * RECORD_SIZE;
        if start >= end {
            break;
        }
        overlay(&mut bytes, offset, start, entry(record, admin_entries).as_bytes());
    }
    Some(bytes)
}

/// Copies the part of `piece`, which begins `at` bytes into the log, that the window from `offset` on shows.
fn overlay(window: &mut [u8], offset: usize, at: usize, piece: &[u8]) {
    let (to, from) = (at.saturating_sub(offset), offset.saturating_sub(at));
    if let (Some(to), Some(from)) = (window.get_mut(to..), piece.get(from..)) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
        }
    }
}

fn entry(record: &Record, admin_entries: u16) -> DiscoveryEntry {
    let secure = match record.secure_channel {
        SecureChannel::Unspecified => log::SecureChannel::NOT_SPECIFIED,
        SecureChannel::Required => log::SecureChannel::REQUIRED,
        SecureChannel::NotRequired => log::SecureChannel::NOT_REQUIRED,
    };
    let mut entry = DiscoveryEntry {
        adrfam: match record.address.address {
            IpAddr::V4(_) => AddressFamily::IPV4,
            IpAddr::V6(_) => AddressFamily::IPV6,
        },
        subtype: record.kind,
        treq: secure.raw() | treq::DISABLE_SQ_FLOW_CONTROL,
        portid: U16::new(record.port.0),
        cntlid: U16::new(CNTLID_DYNAMIC),
        asqsz: U16::new(admin_entries),
        subnqn: record.subsystem.to_field(),
        ..DiscoveryEntry::default()
    };
    // An IP address and a port number always fit.
    let _ = entry.set_address(&record.address.address.to_string());
    let _ = entry.set_service(&record.address.service.to_string());
    match record.address.transport {
        TransportKind::Tcp => {
            entry.trtype = TransportType::TCP;
            entry.set_tcp(log::SecurityType::NONE);
        }
        TransportKind::Rdma(provider) => {
            entry.trtype = TransportType::RDMA;
            entry.set_rdma(log::RdmaTsas {
                qp_type: log::RdmaQpType::CONNECTED,
                provider: match provider {
                    RdmaProvider::Unspecified => log::RdmaProvider::NONE,
                    RdmaProvider::InfiniBand => log::RdmaProvider::INFINIBAND,
                    RdmaProvider::RoceV2 => log::RdmaProvider::ROCE_V2,
                    RdmaProvider::Iwarp => log::RdmaProvider::IWARP,
                },
                cms: log::RdmaCms::RDMA_CM,
                pkey: 0,
            });
        }
    }
    entry
}
