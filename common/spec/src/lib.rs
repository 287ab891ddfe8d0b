//! Wire types of NVMe base, the NVM command set, NVMe over Fabrics, and the TCP and RDMA bindings.
#![no_std]
#![forbid(unsafe_code)]

mod macros;

pub mod command;
pub mod controller;
pub mod fabrics;
pub mod nqn;
pub mod sgl;
pub mod status;
pub mod tcp;

pub use command::{Cqe, Sqe};
pub use nqn::Nqn;
pub use sgl::{Sgl, SglDescriptor};
pub use status::Status;
/// The little-endian, alignment-free integers that the wire types are made of.
pub use zerocopy::little_endian::{U16, U32, U64};
