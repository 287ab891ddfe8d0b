//! Tests that are the same over every path. Each is a function over a [`Harness`];
//! [`over_every_path`](crate::over_every_path) makes tests of them.

pub mod admin;
pub mod commands;
pub mod discovery;
pub mod errors;
pub mod events;
pub mod life;
pub mod limits;
pub mod mixes;
pub mod sizes;

use homi_queue::{Command, Data, Queue, Wait};

use crate::harness::{Harness, Host, HostOptions};
use crate::issuer::{Issuer, blank, memory};
use crate::random::contents;
use crate::settings;

/// Makes a test of each body for each path: the pair in memory, TCP on whatever the system offers, TCP on readiness events.
/// `over_every_path! { ROOT => SUBJECT: BODY, ...; }` takes the functions `fabric_tests::ROOT::SUBJECT::BODY`.
#[macro_export]
macro_rules! over_every_path {
    ($root:ident => $($subject:ident: $($body:ident),+;)+) => {
        $crate::over_every_path!(@path pair $crate::pair::Pair; $root $($subject: $($body),+;)+);
        $crate::over_every_path!(@path tcp $crate::network::Network; $root $($subject: $($body),+;)+);
        $crate::over_every_path!(@path readiness $crate::network::ReadinessNetwork; $root $($subject: $($body),+;)+);
    };
    (@path $path:ident $harness:ty; $root:ident $($subject:ident: $($body:ident),+;)+) => {
        mod $path {
            $($crate::over_every_path!(@subject $harness; $root $subject: $($body),+);)+
        }
    };
    (@subject $harness:ty; $root:ident $subject:ident: $($body:ident),+) => {
        mod $subject {
            $(#[test]
            fn $body() {
                $crate::$root::$subject::$body::<$harness>();
            })+
        }
    };
}

/// Writes blocks from `lba` on.
pub fn write<Q: Queue + Wait>(queue: &mut Issuer<Q>, (nsid, block): (u32, u32), lba: u64, bytes: &[u8]) {
    let blocks = u32::try_from(bytes.len()).unwrap() / block;
    let status = queue.status(Command::write(nsid, lba, blocks), memory(bytes));
    assert!(
        status.is_success(),
        "writing {blocks} blocks at {lba} of {nsid}: {status}"
    );
}

/// Reads `blocks` blocks from `lba` on.
pub fn read<Q: Queue + Wait>(
    queue: &mut Issuer<Q>,
    (nsid, block): (u32, u32),
    lba: u64,
    blocks: u32,
) -> Vec<u8> {
    let len = usize::try_from(blocks * block).unwrap();
    queue.bytes(Command::read(nsid, lba, blocks), blank(len))
}

/// Writes something that was not there and reads it back.
pub fn write_and_read<Q: Queue + Wait>(queue: &mut Issuer<Q>, namespace: (u32, u32), lba: u64, seed: u64) {
    let bytes = contents(seed, 8 * usize::try_from(namespace.1).unwrap());
    write(queue, namespace, lba, &bytes);
    assert_eq!(read(queue, namespace, lba, 8), bytes, "seed {seed}");
}

/// A target that serves memory, a host and a queue.
fn ram_and_queue<H: Harness>(depth: u16) -> (H, H::Host, Issuer<<H::Host as Host>::Queue>) {
    let mut target = H::start(&settings::ram());
    let mut host = target.host(&HostOptions::default());
    let queue = host.queue(depth);
    (target, host, queue)
}

/// Nothing to transfer.
const NOTHING: Data = Data::None;
