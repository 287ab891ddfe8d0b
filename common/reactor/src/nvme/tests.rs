//! On the null device, which accepts every command and answers with success at once.

use std::fs::File;

use homi_queue::Region;

use super::*;

fn ring(device: &str, registration: Registration) -> Option<NvmeRing> {
    let file = File::options().read(true).write(true).open(device).unwrap();
    match NvmeRing::new(8, Arc::new(file.into()), 7, registration) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn push(
    ring: &mut NvmeRing,
    token: u64,
    command: Command,
    data: Data,
    part: Range<usize>,
) -> Result<(), NvmeRefused> {
    ring.push(NvmeOperation {
        token,
        command,
        data,
        part,
        lasting: true,
    })
}

fn run(ring: &mut NvmeRing, commands: Vec<(Command, Data)>) -> Vec<(u64, io::Result<NvmeOutcome>, Data)> {
    let count = commands.len();
    for (token, (command, data)) in commands.into_iter().enumerate() {
        let len = data.len();
        push(ring, token as u64, command, data, 0..len).unwrap();
    }
    ring.submit().unwrap();
    let mut outcomes = Vec::new();
    while outcomes.len() < count {
        ring.poll(&mut |token, outcome, data| outcomes.push((token, outcome, data)))
            .unwrap();
    }
    outcomes
}

#[test]
fn the_fields_are_where_the_kernel_looks_for_them() {
    let mut command = Command::write(99, 0x1122_3344_5566, 8).with_fua();
    command.0.cdw2 = 2.into();
    command.0.cdw3 = 3.into();
    command.0.cdw15 = 15.into();
    let bytes = wire::command(&command, 7, 0xaabb_ccdd_eeff, 4096);
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((bytes[0], bytes[1]), (1, 0));
    assert_eq!((word(4), word(8), word(12)), (7, 2, 3));
    assert_eq!(&bytes[16..24], [0; 8]);
    assert_eq!(
        u64::from_ne_bytes(bytes[24..32].try_into().unwrap()),
        0xaabb_ccdd_eeff
    );
    assert_eq!((word(32), word(36)), (0, 4096));
    assert_eq!((word(40), word(44)), (0x3344_5566, 0x1122));
    assert_eq!((word(48), word(60)), (7 | 1 << 30, 15));
    assert_eq!(&bytes[64..], [0; 16]);
    // The numbers that <linux/nvme_ioctl.h> makes of its macros.
    assert_eq!(wire::URING_CMD_IO, 0xc048_4e80);
    assert_eq!(wire::URING_CMD_IO_VEC, 0xc048_4e81);
    assert_eq!(wire::ADMIN_CMD, 0xc048_4e41);
    assert_eq!(wire::ID, 0x4e40);
}

#[test]
fn a_batch_is_one_system_call_and_memory_comes_back() {
    let Some(mut ring) = ring("/dev/null", Registration::Explicit) else {
        return;
    };
    let region = Region::allocate(8 * 4096, 4096).unwrap();
    for _ in 0..10 {
        let before = ring.counters();
        let commands = (0..8)
            .map(|n| {
                let at = n * 4096;
                let data = Data::One(region.segment(at..at + 4096).unwrap());
                (Command::read(1, n as u64, 8), data)
            })
            .collect();
        let outcomes = run(&mut ring, commands);
        assert_eq!(outcomes.len(), 8);
        for (token, outcome, data) in outcomes {
            assert_eq!(outcome.unwrap().status, 0);
            let at = usize::try_from(token).unwrap() * 4096;
            let expected = region.host_address().wrapping_add(at);
            assert_eq!(data.segments()[0].host_address(), expected);
        }
        let after = ring.counters();
        assert_eq!(after.system_calls - before.system_calls, 1);
        assert_eq!(after.operations - before.operations, 8);
    }
    assert_eq!((ring.counters().fixed, ring.in_flight()), (0, 0));
}

#[test]
fn registered_memory_is_used_as_such_until_it_is_forgotten() {
    let Some(mut ring) = ring("/dev/null", Registration::Automatic) else {
        return;
    };
    let region = Region::allocate(8192, 4096).unwrap();
    let other = Region::allocate(8192, 4096).unwrap();
    let read = |region: &Region| {
        (
            Command::read(1, 0, 8),
            Data::One(region.segment(0..4096).unwrap()),
        )
    };
    let _ = run(&mut ring, vec![read(&region)]);
    assert_eq!(ring.counters().registrations, 0);
    let _ = run(&mut ring, vec![read(&region), read(&region), read(&other)]);
    let counters = ring.counters();
    if counters.registrations == 0 {
        eprintln!("skipped: this system registers no memory");
        return;
    }
    assert_eq!((counters.registrations, counters.fixed), (1, 2));
    assert!(!region.is_unique());
    ring.forget(region.host_address().wrapping_add(4096));
    assert!(region.is_unique());
    assert!(other.is_unique());
    assert!(ring.register(&other));
    assert!(!other.is_unique());
    drop(ring);
    assert!(other.is_unique());
}

#[test]
fn what_cannot_be_pushed_is_handed_back() {
    let Some(mut ring) = ring("/dev/null", Registration::Explicit) else {
        return;
    };
    let region = Region::allocate(4096, 4096).unwrap();
    let data = || Data::One(region.segment(0..4096).unwrap());
    let anywhere = Data::Anywhere { len: 4096 };
    let refused = push(&mut ring, 0, Command::read(1, 0, 8), anywhere, 0..4096).unwrap_err();
    assert_eq!(refused.reason, NvmeRefusal::Memory);
    let refused = push(&mut ring, 0, Command::read(1, 0, 8), data(), 1..4097).unwrap_err();
    assert_eq!((refused.reason, refused.data.len()), (NvmeRefusal::Memory, 4096));
    let many = Data::List((0..=MAX_RANGES).map(|_| region.segment(0..4).unwrap()).collect());
    let len = many.len();
    let refused = push(&mut ring, 0, Command::read(1, 0, 8), many, 0..len).unwrap_err();
    assert_eq!(refused.reason, NvmeRefusal::Ranges);
    for token in 0..8 {
        push(&mut ring, token, Command::flush(1), Data::None, 0..0).unwrap();
    }
    let refused = push(&mut ring, 8, Command::flush(1), Data::None, 0..0).unwrap_err();
    assert_eq!(refused.reason, NvmeRefusal::Full);
    let mut closed = 0;
    ring.close(&mut |_, _| closed += 1);
    assert_eq!(closed, 8);
}

#[test]
fn a_device_that_takes_no_commands_says_so() {
    let Some(mut ring) = ring("/dev/zero", Registration::Explicit) else {
        return;
    };
    let (_, outcome, _) = run(&mut ring, vec![(Command::flush(1), Data::None)]).remove(0);
    assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    let zero = File::open("/dev/zero").unwrap();
    let zero = OwnedFd::from(zero);
    assert_eq!(
        namespace_id(std::os::fd::AsFd::as_fd(&zero))
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ENOTTY)
    );
}

#[test]
fn a_sleeper_is_woken_for_what_is_known_already() {
    let Some(mut ring) = ring("/dev/null", Registration::Explicit) else {
        return;
    };
    let readable = |ring: &NvmeRing| {
        let mut descriptor = [PollFd::new(ring.wait_descriptor(), PollFlags::POLLIN)];
        nix::poll::poll(&mut descriptor, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!readable(&ring));
    ring.wake();
    ring.wake();
    ring.submit().unwrap();
    assert!(readable(&ring));
    assert_eq!(
        ring.poll(&mut |_, _, _| panic!("there is no command")).unwrap(),
        0
    );
    assert!(!readable(&ring));
}
