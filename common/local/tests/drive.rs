//! A drive that this process drives itself, against the soft controller: as executors use it, over real time.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on ends here and says where"
)]

use std::time::{Duration, Instant};

use homi_local::{Backing, Drive, DriveError, FileBackend, LocalQueue};
use homi_nvme::Options;
use homi_pci::PciIdentity;
use homi_queue::{Command, Completed, Data, Queue, QueueLost, Region, Wait};
use homi_soft_controller::{NamespaceConfig, SoftConfig, SoftController, SoftThread};
use homi_spec::status::Status;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long something may take that ends by itself.
const BOUND: Duration = Duration::from_secs(20);

fn model(namespaces: Vec<NamespaceConfig>) -> (SoftController, SoftThread) {
    let config = SoftConfig {
        serial: "soft-7".into(),
        namespaces,
        ..SoftConfig::default()
    };
    let model = SoftController::new(config).unwrap();
    let thread = model.spawn().unwrap();
    (model, thread)
}

fn two() -> Vec<NamespaceConfig> {
    vec![NamespaceConfig::new(4096, 9), NamespaceConfig::new(512, 12)]
}

fn memory(len: usize, value: u8) -> Data {
    let region = Region::allocate(len, 4096).unwrap();
    region.fill(0, len, value).unwrap();
    Data::whole(region)
}

/// Runs one command, asleep while there is nothing to do.
fn run(queue: &mut LocalQueue, command: Command, data: Data) -> Result<Completed, QueueLost> {
    let slot = queue.reserve().unwrap();
    queue.submit(slot, command, data);
    let mut done = Vec::new();
    let start = Instant::now();
    queue.commit()?;
    while queue.poll(&mut done)? == 0 {
        assert!(start.elapsed() < BOUND, "no completion");
        match queue.wait_descriptor() {
            Some(descriptor) => {
                let mut wanted = [PollFd::new(descriptor, PollFlags::POLLIN)];
                poll(&mut wanted, PollTimeout::from(50_u8)).unwrap();
            }
            None => std::thread::yield_now(),
        }
    }
    Ok(done.pop().unwrap())
}

#[test]
fn namespaces_are_chosen_and_described() {
    let (soft, _thread) = model(two());
    let error = Drive::take_over(soft.physical(), None, Options::new()).unwrap_err();
    assert!(error.to_string().contains("1, 2: choose one"), "{error}");
    let error = Drive::take_over(soft.physical(), Some(3), Options::new()).unwrap_err();
    assert!(
        matches!(error, DriveError::NoNamespace { nsid: 3, .. }),
        "{error}"
    );
    let drive = Drive::take_over(soft.physical(), Some(2), Options::new()).unwrap();
    assert_eq!(
        (
            drive.nsid(),
            drive.geometry().block_size(),
            drive.geometry().blocks()
        ),
        (2, 4096, 512)
    );
    assert_eq!(drive.ids().serial, "soft-7");
    assert_eq!(drive.sibling(1).unwrap().geometry().block_size(), 512);
    assert!(drive.sibling(7).is_err());
    drop(drive);
    assert_eq!(soft.misuse(), []);
    let config = SoftConfig {
        identity: PciIdentity {
            class: 0x02_0000,
            ..PciIdentity::default()
        },
        ..SoftConfig::default()
    };
    let other = SoftController::new(config).unwrap();
    let error = Drive::take_over(other.physical(), None, Options::new()).unwrap_err();
    assert!(
        matches!(error, DriveError::NotDrive { class: 0x02_0000, .. }),
        "{error}"
    );
}

#[test]
fn commands_get_the_namespace_and_what_cannot_be_checked_is_refused() {
    let (soft, _thread) = model(two());
    let drive = Drive::take_over(soft.physical(), Some(2), Options::new()).unwrap();
    let backing = Backing::from(drive.clone());
    let mut queue = backing.open_queue(8, FileBackend::Auto).unwrap();
    // The issuer's number for the namespace is its own matter.
    let done = run(&mut queue, Command::write(9, 3, 2), memory(8192, 0x5a)).unwrap();
    assert!(done.completion.is_success(), "{:?}", done.completion);
    let done = run(&mut queue, Command::read(77, 3, 2), Data::Anywhere { len: 8192 }).unwrap();
    let mut bytes = vec![0; 8192];
    done.data.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x5a));
    drop(done);
    // The other namespace is as it was.
    let mut other = Backing::from(drive.sibling(1).unwrap())
        .open_queue(8, FileBackend::Auto)
        .unwrap();
    let done = run(&mut other, Command::read(1, 24, 16), memory(8192, 1)).unwrap();
    done.data.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    drop(done);
    // Past the end is the drive's to refuse, wrong lengths and unknown commands are refused here.
    let status = |queue: &mut LocalQueue, command, data| run(queue, command, data).unwrap().completion.status;
    assert!(status(&mut queue, Command::read(1, 511, 2), memory(8192, 0)).is(Status::LBA_OUT_OF_RANGE));
    assert!(status(&mut queue, Command::read(1, 0, 2), memory(4096, 0)).is(Status::SGL_DATA_LENGTH_INVALID));
    let mut vendor = Command::read(1, 0, 1);
    vendor.0.opcode = 0xc2;
    assert!(status(&mut queue, vendor, memory(4096, 0)).is(Status::INVALID_OPCODE));
    let mut reader = Backing::from(drive.with_read_only(true))
        .open_queue(4, FileBackend::Auto)
        .unwrap();
    assert!(
        status(&mut reader, Command::write(1, 0, 1), memory(4096, 9)).is(Status::NAMESPACE_WRITE_PROTECTED)
    );
    assert!(status(&mut reader, Command::flush(1), Data::None).is_success());
    drop((queue, other, reader, backing));
    assert_eq!(soft.misuse(), []);
}

#[test]
fn parts_of_one_region_are_mapped_once_and_forgotten_together() {
    let (soft, _thread) = model(two());
    let drive = Drive::take_over(soft.physical(), Some(2), Options::new()).unwrap();
    let mut queue = drive.open_queue(8).unwrap();
    let whole = Region::allocate(1 << 20, 4096).unwrap();
    let before = queue.counters().mapped;
    for number in 0..64 {
        let part = whole.part(number * 4096..(number + 1) * 4096).unwrap();
        let slot = queue.reserve().unwrap();
        queue.submit(slot, Command::write(1, number as u64, 1), Data::whole(part));
        queue.commit().unwrap();
        let mut done: Vec<Completed> = Vec::new();
        let start = Instant::now();
        while queue.poll(&mut done).unwrap() == 0 {
            assert!(start.elapsed() < BOUND, "no completion");
            std::thread::yield_now();
        }
        assert!(done.remove(0).completion.is_success());
    }
    assert_eq!(queue.counters().mapped - before, 1);
    assert!(!whole.is_unique());
    // With a command in flight on it, it stays until that is over.
    let part = whole.part(0..4096).unwrap();
    let slot = queue.reserve().unwrap();
    queue.submit(slot, Command::read(1, 5, 1), Data::whole(part));
    queue.forget(&whole);
    let mut done: Vec<Completed> = Vec::new();
    queue.commit().unwrap();
    let start = Instant::now();
    while queue.poll(&mut done).unwrap() == 0 {
        assert!(start.elapsed() < BOUND, "no completion");
        std::thread::yield_now();
    }
    assert!(done.remove(0).completion.is_success());
    assert!(whole.is_unique());
    let space = soft.space(0).unwrap();
    assert_eq!((space.faults(), space.early_unmaps()), (Vec::new(), Vec::new()));
    drop((queue, drive));
    assert_eq!(soft.misuse(), []);
}

#[test]
fn a_queue_with_the_number_of_an_earlier_one_is_heard() {
    let (soft, _thread) = model(two());
    let drive = Drive::take_over(soft.physical(), Some(1), Options::new()).unwrap();
    let backing = Backing::from(drive.clone());
    // Each leaves other doorbells in memory, and another place where the controller slept.
    for commands in [17, 3, 5, 1, 40] {
        let mut queue = backing.open_queue(20, FileBackend::Auto).unwrap();
        for lba in 0..commands {
            let done = run(&mut queue, Command::write(1, lba, 8), memory(4096, 3)).unwrap();
            assert!(done.completion.is_success());
        }
        let LocalQueue::Drive(queue) = queue else {
            unreachable!()
        };
        assert_eq!(queue.qid(), 1);
    }
    drop((backing, drive));
    assert_eq!(soft.misuse(), []);
}

#[test]
fn after_a_reset_another_queue_is_opened() {
    let (soft, _thread) = model(two());
    let drive = Drive::take_over(soft.physical(), Some(1), Options::new()).unwrap();
    let backing = Backing::from(drive.clone());
    let mut queue = backing.open_queue(8, FileBackend::Auto).unwrap();
    let done = run(&mut queue, Command::write(1, 0, 8), memory(4096, 3)).unwrap();
    assert!(done.completion.is_success());
    drive.controller().reset().unwrap();
    let lost = run(&mut queue, Command::read(1, 0, 8), memory(4096, 0)).unwrap_err();
    assert_eq!(lost.undelivered().len(), 1);
    drop((lost, queue));
    let mut queue = backing.open_queue(8, FileBackend::Auto).unwrap();
    let done = run(&mut queue, Command::read(1, 0, 8), memory(4096, 0)).unwrap();
    let mut bytes = vec![0; 4096];
    done.data.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 3));
    // One that is gone is not waited for.
    soft.remove(0);
    let start = Instant::now();
    while backing.open_queue(8, FileBackend::Auto).is_ok() {
        assert!(start.elapsed() < BOUND, "nobody noticed");
        std::thread::sleep(Duration::from_millis(5));
    }
}
