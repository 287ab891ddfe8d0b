//! Socket addresses as the connection manager takes them, and back.
#![expect(unsafe_code, reason = "reads and writes the variants of C's sockaddr")]

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr;

/// The families, as addresses have them.
const INET: libc::sa_family_t = 2;
const INET6: libc::sa_family_t = 10;
const _: () = assert!(INET as i32 == libc::AF_INET && INET6 as i32 == libc::AF_INET6);

/// An address in C's form.
pub(crate) struct RawAddress(libc::sockaddr_storage);

impl RawAddress {
    pub(crate) fn new(address: SocketAddr) -> Self {
        // SAFETY: `sockaddr_storage` is plain data, for which zeros are a value.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let to = &raw mut storage;
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: INET,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*v4.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than any address and as aligned as the most demanding one.
                unsafe { ptr::write(to.cast(), raw) };
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: INET6,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { ptr::write(to.cast(), raw) };
            }
        }
        Self(storage)
    }

    /// For calls that take a pointer which they do not write through.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

/// An address of the connection manager, or `None` if it is not set or of another family.
pub(crate) fn from_raw(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from = ptr::from_ref(storage);
    match storage.ss_family {
        INET => {
            // SAFETY: the family says that this is what the storage has; it is large and aligned enough, and plain data.
            let raw: libc::sockaddr_in = unsafe { ptr::read(from.cast()) };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        INET6 => {
            // SAFETY: as above.
            let raw: libc::sockaddr_in6 = unsafe { ptr::read(from.cast()) };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["10.1.2.3:4420", "[2001:db8::1]:4420", "0.0.0.0:0", "[::]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_raw(&RawAddress::new(address).0), Some(address));
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 7));
        assert_eq!(from_raw(&RawAddress::new(scoped).0), Some(scoped));
        // SAFETY: plain data, as above.
        assert_eq!(from_raw(&unsafe { mem::zeroed() }), None);
    }
}
