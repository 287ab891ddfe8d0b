//! Opening what cannot be served ends with a sentence that says what to change.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Scratch, run};
use homi_local::{Backing, DirectIo, File, FileBackend, FileOptions, OpenError};
use homi_queue::{Command, Data, Region};

fn error(options: &FileOptions) -> OpenError {
    File::open(options).expect_err("this cannot be served")
}

fn sentence(options: &FileOptions, scratch: &Scratch) -> String {
    error(options)
        .to_string()
        .replace(&scratch.path().display().to_string(), "FILE")
}

#[test]
fn a_missing_file_is_named() {
    let text = error(&FileOptions::new("/no/such/file")).to_string();
    assert_eq!(
        text,
        "/no/such/file does not exist: create it first, for example with `truncate -s 1G /no/such/file`, or correct the path"
    );
    let text = error(&FileOptions::new("/proc/self/exe/below")).to_string();
    assert!(text.contains("does not exist"), "{text}");
}

#[test]
fn what_is_no_storage_is_named() {
    for (path, kind) in [("/", "directory"), ("/dev/null", "character device")] {
        let text = error(&FileOptions::new(path)).to_string();
        assert_eq!(
            text,
            format!("{path} is a {kind}: only regular files and block devices can be served")
        );
    }
    let scratch = Scratch::new(0);
    fs::remove_file(scratch.path()).unwrap();
    nix::unistd::mkfifo(scratch.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A pipe would keep the process waiting if it were opened.
    assert!(sentence(&FileOptions::new(scratch.path()), &scratch).contains("pipe"));
}

#[test]
fn sizes_that_make_no_namespace_are_named() {
    let scratch = Scratch::new(1000);
    let options = FileOptions::new(scratch.path());
    assert_eq!(
        sentence(&options, &scratch),
        "FILE cannot be a namespace: 1000 bytes are not a whole number of logical blocks of 512 bytes; \
         change the file's size (`truncate -s`) or the block size"
    );
    let scratch = Scratch::new(512 * 9);
    assert_eq!(
        File::open(&FileOptions::new(scratch.path()))
            .unwrap()
            .geometry()
            .blocks(),
        9
    );
    let text = sentence(&FileOptions::new(scratch.path()).block_size(4096), &scratch);
    assert!(
        text.contains("4608 bytes are not a whole number of logical blocks of 4096 bytes"),
        "{text}"
    );
    let text = sentence(&FileOptions::new(scratch.path()).block_size(1024), &scratch);
    assert!(
        text.contains("a logical block has 512 or 4096 bytes, not 1024"),
        "{text}"
    );
    let scratch = Scratch::new(0);
    let text = sentence(&FileOptions::new(scratch.path()), &scratch);
    assert!(text.contains("needs at least one logical block"), "{text}");
}

#[test]
fn a_file_is_served_once_even_within_one_process() {
    let scratch = Scratch::new(1 << 20);
    let options = FileOptions::new(scratch.path());
    let first = File::open(&options).unwrap();
    if let Some(reason) = first.unlocked_reason() {
        eprintln!("skipped: {reason}");
        return;
    }
    let link = scratch.path().with_extension("link");
    symlink(scratch.path(), &link).unwrap();
    let second = File::open(&FileOptions::new(&link));
    fs::remove_file(&link).unwrap();
    assert!(
        matches!(second, Err(OpenError::InUse { .. })),
        "another name is the same file"
    );
    assert!(matches!(
        error(&options.clone().read_only(true)),
        OpenError::InUse { .. }
    ));

    drop(first);

    // The lock lasts as long as a queue, and no longer.
    for backend in [FileBackend::Threads, FileBackend::Auto] {
        let backing = Backing::from(File::open(&options).unwrap());
        let mut queue = backing.open_queue(4, backend).unwrap();
        drop(backing);
        assert!(matches!(error(&options), OpenError::InUse { .. }));
        assert!(run(&mut queue, Command::flush(1), Data::None).0.is_success());
    }

    let readers = [options.clone().read_only(true), options.clone().read_only(true)];
    let readers = readers.map(|options| File::open(&options).unwrap());
    assert!(matches!(error(&options), OpenError::InUse { .. }));
    drop(readers);
    assert!(File::open(&options).is_ok());
}

#[test]
fn read_only_is_part_of_the_geometry() {
    let scratch = Scratch::new(1 << 20);
    let file = File::open(&FileOptions::new(scratch.path()).read_only(true)).unwrap();
    assert!(file.geometry().read_only() && !file.is_block_device());
    assert_eq!(file.path(), scratch.path());
}

#[test]
fn a_file_that_may_not_be_written_can_be_served_read_only() {
    let scratch = Scratch::new(1 << 20);
    let mut permissions = fs::metadata(scratch.path()).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(scratch.path(), permissions).unwrap();
    match File::open(&FileOptions::new(scratch.path())) {
        Err(OpenError::PermissionDenied { .. }) => {
            let text = sentence(&FileOptions::new(scratch.path()), &scratch);
            assert!(
                text.starts_with("no permission to open FILE for reading and writing: "),
                "{text}"
            );
        }
        Ok(_) => eprintln!("skipped in part: this user may write every file"),
        Err(other) => panic!("{other}"),
    }
    assert!(File::open(&FileOptions::new(scratch.path()).read_only(true)).is_ok());
}

#[test]
fn direct_io_is_used_or_the_reason_is_kept() {
    for folder in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        if !Path::new(folder).is_dir() {
            continue;
        }
        let scratch = Scratch::in_folder(Path::new(folder), 1 << 20);
        let file = File::open(&FileOptions::new(scratch.path())).unwrap();
        match file.buffered_reason() {
            None => assert!(file.is_direct()),
            Some(reason) => {
                eprintln!("{folder}: buffered: {reason}");
                assert!(!file.is_direct());
                drop(file);
                let text = sentence(
                    &FileOptions::new(scratch.path()).direct(DirectIo::Require),
                    &scratch,
                );
                assert!(
                    text.starts_with("FILE cannot be served with direct I/O: "),
                    "{text}"
                );
                continue;
            }
        }
        drop(file);
        let file = File::open(&FileOptions::new(scratch.path()).direct(DirectIo::Never)).unwrap();
        assert_eq!(file.buffered_reason(), Some("direct I/O was switched off"));
    }
}

#[test]
fn a_file_is_reopened_with_what_was_written() {
    let scratch = Scratch::new(1 << 20);
    for round in 0..5_u8 {
        let file = File::open(&FileOptions::new(scratch.path())).unwrap();
        let mut queue = Backing::from(file).open_queue(4, FileBackend::Auto).unwrap();
        let expected = Data::whole(Region::from_vec(vec![round; 4096]));
        if round > 0 {
            assert!(
                run(&mut queue, Command::compare(1, 8, 8), expected)
                    .0
                    .is_success()
            );
        }
        let next = Data::whole(Region::from_vec(vec![round + 1; 4096]));
        assert!(
            run(&mut queue, Command::write(1, 8, 8).with_fua(), next)
                .0
                .is_success()
        );
    }
}
