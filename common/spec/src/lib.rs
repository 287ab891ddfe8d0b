//! Wire types of NVMe: base, the NVM command set, NVMe over Fabrics, and its TCP and RDMA bindings.
//!
//! `no_std`, no allocation, no unsafe code, no I/O and no policy: this crate says what the bytes mean,
//! nothing more. Everything that speaks NVMe in this project, whichever end it is, shares these types.
//!
//! # Two tiers
//!
//! **Layouts** are `#[repr(C)]` structs of alignment-free little-endian integers ([`Sqe`], [`tcp::R2t`],
//! [`identify::IdentifyController`], …). Any bytes of the right length are a valid value, so a peer's bytes
//! are read in place without a copy or a check, and reserved fields survive. Their sizes and key offsets are
//! asserted when the crate is compiled.
//!
//! **Values** are plain Rust structs and enums with the fields converted once ([`fabrics::ConnectCommand`],
//! [`nvm::BlockCommand`], [`log::GetLogPage`], [`SglDescriptor`], …), made by `from_sqe` or `parse` and
//! turned back by `to_sqe` or `encode`. Zero-based fields keep the suffix `_z` and have a method that gives
//! the count.
//!
//! Enumerations on the wire are open: a newtype over the raw value with named constants, as
//! [`command::AdminOpcode`]. They can be matched against and print their name; a value without a name is kept
//! and prints as such.
//!
//! # Where things are
//!
//! | module | holds | specification |
//! |---|---|---|
//! | [`command`] | queue entries, opcodes | Base 2.0 §3.3.3 |
//! | [`status`] | completion status | Base 2.0 §3.3.3.2.1 |
//! | [`sgl`] | SGL descriptors | Base 2.0 §4.1.2 |
//! | [`controller`] | CAP, VS, CC, CSTS | Base 2.0 §3.1.3 |
//! | [`registers`] | what PCIe has besides | Base 2.0 §3.1.3 |
//! | [`admin`] | queue creation, Abort, Keep Alive, event requests | Base 2.0 §5 |
//! | [`identify`] | Identify and its pages | Base 2.0 §5.17, NVM Command Set 1.0 §4.1.5 |
//! | [`log`](mod@log) | Get Log Page and its pages, discovery and ANA among them | Base 2.0 §5.16 |
//! | [`feature`] | Get and Set Features | Base 2.0 §5.15, §5.27 |
//! | [`event`] | asynchronous events | Base 2.0 §5.2 |
//! | [`manage`] | namespaces, formats, doorbell buffers, virtual functions | Base 2.0 §5.8, §5.14, §5.20, §5.21, §5.30 |
//! | [`nvm`] | Read, Write, Compare, Write Zeroes, Dataset Management, … | NVM Command Set 1.0 §3.2 |
//! | [`fabrics`] | Connect, Disconnect, properties, authentication commands | Base 2.0 §6 |
//! | [`auth`] | authentication messages | Base 2.0 §8.13 |
//! | [`nqn`] | qualified names | Base 2.0 §4.5 |
//! | [`tcp`] | protocol data units | TCP Transport 1.0 §3.6.2 |
//! | [`rdma`] | connection manager private data | RDMA Transport 1.0 |
//! | [`text`] | fixed-size text fields | Base 2.0 §1.4.2 |
//!
//! # Example
//!
//! A Read of eight blocks over TCP, and the completion that refuses it:
//!
//! ```
//! use homi_spec::nvm::{BlockCommand, control};
//! use homi_spec::tcp::{CapsuleCmd, PduHeader, PduType};
//! use homi_spec::{Cqe, Sgl, Status};
//! use zerocopy::{FromBytes, IntoBytes};
//!
//! let read = BlockCommand::read(1, 0x1000, 8)?.with(control::FUA);
//! let mut sqe = read.to_sqe(0x2a);
//! sqe.set_sgl(Sgl::transport(8 * 512));
//!
//! let capsule = CapsuleCmd { header: PduHeader::new(PduType::CAPSULE_CMD, 0, 0, 72), sqe };
//! assert_eq!(capsule.as_bytes().len(), 72);
//!
//! // The other end reads the same bytes in place.
//! let received = CapsuleCmd::ref_from_bytes(capsule.as_bytes()).unwrap();
//! assert_eq!(BlockCommand::from_sqe(&received.sqe), Some(read));
//!
//! let refusal = Cqe::new(0x2a).with_status(Status::LBA_OUT_OF_RANGE.with_dnr());
//! assert_eq!(refusal.status().to_string(), "lba out of range (sct 0 sc 80h, do not retry)");
//! # Ok::<(), homi_spec::nvm::BlockCountError>(())
//! ```
//!
//! # Limits
//!
//! Base 2.0 is the reference; fields and codes of later revisions are named where peers use them, and are
//! otherwise kept in reserved ranges. Section numbers are those of Base 2.0, NVM Command Set 1.0, TCP
//! Transport 1.0 and RDMA Transport 1.0. Each module's header says what it leaves out. Nothing here decides
//! whether a value is acceptable: that is the state machines' work.
#![no_std]
#![forbid(unsafe_code)]

mod macros;

pub mod admin;
pub mod auth;
pub mod command;
pub mod controller;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod manage;
pub mod nqn;
pub mod nvm;
pub mod rdma;
pub mod registers;
pub mod sgl;
pub mod status;
pub mod tcp;
pub mod text;

pub use command::{Cqe, Sqe};
pub use nqn::Nqn;
pub use sgl::{Sgl, SglDescriptor};
pub use status::Status;
/// The little-endian, alignment-free integers that the wire types are made of.
pub use zerocopy::little_endian::{U16, U32, U64, U128};
