//! Commands and data of every shape, on a controller that behaves.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "tests fail by panics, and draw small numbers from large ones"
)]

mod support;

use homi_nvme::{Interrupts, Options, QueueOptions, Refusal, SglUse};
use homi_queue::{Command, Data, Queue, Region, Wait};
use homi_soft_controller::{NamespaceConfig, SglSupport, SoftConfig};
use homi_spec::status::Status;
use support::{Rig, bytes, options, pattern, region, submit};

fn every_pointer(body: impl Fn(&Rig)) {
    for sgl in [SglSupport::None, SglSupport::Bytes, SglSupport::Dwords] {
        for use_of in [SglUse::Never, SglUse::WhenNeeded, SglUse::WhereShorter] {
            for mdts in [0, 1, 7] {
                let config = SoftConfig {
                    sgl,
                    mdts,
                    ..SoftConfig::default()
                };
                let rig = Rig::with(config, options().sgls(use_of).max_transfer(256 << 10));
                body(&rig);
                rig.close();
            }
        }
    }
}

#[test]
fn data_of_every_length_and_place_arrives() {
    every_pointer(|rig| {
        let mut queue = rig.queue(8);
        for blocks in [1_u32, 7, 8, 9, 16, 17, 24, 64, 512, 513, 1024, 2048] {
            let len = blocks as usize * 512;
            for offset in [0, 4, 512, 4092] {
                let written = pattern(5, u64::from(blocks), len);
                let memory = Region::allocate(offset + len, 4096).unwrap();
                memory.write(offset, &written).unwrap();
                let data = Data::One(memory.segment(offset..offset + len).unwrap());
                let done = rig.run(&mut queue, Command::write(1, 5, blocks), data);
                assert!(done.completion.is_success(), "{:?}", done.completion);
                let mut media = vec![0; len];
                assert!(rig.model.read_media(1, 5 * 512, &mut media));
                assert!(media == written, "{blocks} blocks at {offset}");
                let memory = Region::allocate(offset + len, 4096).unwrap();
                let data = Data::One(memory.segment(offset..offset + len).unwrap());
                let done = rig.run(&mut queue, Command::read(1, 5, blocks), data);
                assert!(done.completion.is_success() && bytes(&done.data) == written);
                let anywhere = Data::Anywhere { len };
                let done = rig.run(&mut queue, Command::read(1, 5, blocks), anywhere);
                assert!(done.completion.is_success() && bytes(&done.data) == written);
                let done = rig.run(&mut queue, Command::compare(1, 5, blocks), done.data);
                assert!(done.completion.is_success());
            }
        }
    });
}

#[test]
fn misaligned_and_scattered_data_arrives() {
    every_pointer(|rig| {
        let mut queue = rig.queue(8);
        for (parts, start) in [
            (vec![512, 512], 0),
            (vec![4096, 4096], 0),
            (vec![1, 511, 1024], 0),
            (vec![4096], 1),
        ]
        .into_iter()
        .chain([(vec![3, 4093, 8192, 69_632], 2)])
        {
            let len: usize = parts.iter().sum();
            let blocks = u32::try_from(len / 512).unwrap();
            assert_eq!(len % 512, 0, "{parts:?}");
            let written = pattern(9, len as u64, len);
            let list = || -> Vec<_> {
                let region = |len: usize| Region::allocate(start + len, 4096).unwrap();
                parts
                    .iter()
                    .map(|len| region(*len).segment(start..start + len).unwrap())
                    .collect()
            };
            let data = Data::List(list());
            data.write(0, &written).unwrap();
            let done = rig.run(&mut queue, Command::write(1, 9, blocks), data);
            assert!(
                done.completion.is_success(),
                "{:?} {:?}",
                done.completion,
                queue.take_refusal()
            );
            let done = rig.run(&mut queue, Command::read(1, 9, blocks), Data::List(list()));
            assert!(
                done.completion.is_success() && bytes(&done.data) == written,
                "{parts:?}"
            );
        }
    });
}

#[test]
fn copies_are_counted_and_sgls_avoid_them() {
    for (sgl, bounced) in [
        (SglSupport::None, 2),
        (SglSupport::Dwords, 2),
        (SglSupport::Bytes, 0),
    ] {
        let rig = Rig::new(SoftConfig {
            sgl,
            ..SoftConfig::default()
        });
        let mut queue = rig.queue(4);
        for _ in 0..2 {
            let memory = Region::allocate(513, 4096).unwrap();
            let data = Data::One(memory.segment(1..513).unwrap());
            assert!(
                rig.run(&mut queue, Command::read(1, 0, 1), data)
                    .completion
                    .is_success()
            );
        }
        assert_eq!(queue.counters().bounced, bounced, "{sgl:?}");
        assert_eq!(queue.counters().bounced_bytes, bounced * 512);
        drop(queue);
        rig.close();
    }
}

#[test]
fn a_batch_rings_once() {
    let rig = Rig::with(SoftConfig::default(), options().shadow_doorbells(false));
    let mut queue = rig.queue(16);
    let memory = region(&[7; 4096]);
    let mapped = rig.controller.map(&memory).unwrap();
    let before = rig.model.stats(0).doorbells;
    for lba in 0..16 {
        submit(&mut queue, Command::write(1, lba, 8), Data::whole(memory.clone()));
    }
    queue.commit().unwrap();
    queue.commit().unwrap();
    assert_eq!(rig.model.stats(0).doorbells - before, 1);
    rig.model.run_until_idle();
    let mut done = Vec::new();
    assert_eq!(queue.poll(&mut done).unwrap(), 16);
    assert_eq!(queue.poll(&mut done).unwrap(), 0);
    assert_eq!(rig.model.stats(0).doorbells - before, 2);
    let counters = queue.counters();
    assert_eq!((counters.placed, counters.completed), (16, 16));
    assert_eq!(
        (counters.submission_doorbells, counters.completion_doorbells),
        (1, 1)
    );
    assert_eq!((counters.mapped, counters.lists), (0, 0));
    drop((done, mapped, queue));
    rig.close();
}

#[test]
fn shadow_doorbells_save_register_writes() {
    let rig = Rig::new(SoftConfig::default());
    assert!(rig.controller.info().unwrap().shadow_doorbells());
    let mut queue = rig.queue(64);
    for round in 0..200 {
        for lba in 0..8 {
            submit(&mut queue, Command::flush(1), Data::None);
            let _ = lba;
        }
        queue.commit().unwrap();
        let done = rig.finish(&mut queue, 8).unwrap();
        assert_eq!(done.len(), 8, "round {round}");
    }
    assert!(queue.counters().shadowed > 0, "{:?}", queue.counters());
    drop(queue);
    rig.close();
}

#[test]
fn commands_longer_than_mdts_are_split_and_complete_once() {
    let config = SoftConfig {
        mdts: 1,
        ..SoftConfig::default()
    };
    let rig = Rig::new(config);
    let mut queue = rig.queue(2);
    assert_eq!(queue.max_transfer(), 8192);
    let written = pattern(100, 1, 100 * 1024);
    let done = rig.run(
        &mut queue,
        Command::write(1, 100, 200),
        Data::whole(region(&written)),
    );
    assert!(done.completion.is_success());
    assert_eq!((queue.counters().split, queue.counters().placed), (1, 13));
    let done = rig.run(
        &mut queue,
        Command::read(1, 100, 200),
        Data::Anywhere { len: 102_400 },
    );
    assert!(done.completion.is_success() && bytes(&done.data) == written);
    // The part that fails ends the command.
    let done = rig.run(
        &mut queue,
        Command::read(1, 131_072 - 32, 64),
        Data::Anywhere { len: 32_768 },
    );
    assert!(
        done.completion.status.is(Status::LBA_OUT_OF_RANGE),
        "{:?}",
        done.completion
    );
    drop(done);
    // Others cannot be split.
    let ranges = Data::whole(Region::allocate(16 * 256, 4096).unwrap());
    let done = rig.run(&mut queue, Command::deallocate(1, 256), ranges);
    assert!(
        !matches!(queue.take_refusal(), Some(Refusal::TooLong { .. })),
        "{:?}",
        done.completion
    );
    drop(done);
    drop(queue);
    rig.close();
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig.queue(4);
    let page = || Data::whole(Region::allocate(4096, 4096).unwrap());
    let refused = |queue: &mut _, command, data| {
        let done = rig.run(queue, command, data);
        assert!(!done.completion.is_success());
        queue.take_refusal().unwrap()
    };
    let fetched = rig.model.stats(0).fetched;
    let length = refused(&mut queue, Command::read(1, 0, 9), page());
    assert_eq!(
        length,
        Refusal::Length {
            transfer: 4608,
            data: 4096
        }
    );
    assert!(matches!(
        refused(&mut queue, Command::write(1, 0, 7), page()),
        Refusal::Length { .. }
    ));
    assert!(matches!(
        refused(&mut queue, Command::write(1, 0, 1), Data::None),
        Refusal::Length { .. }
    ));
    assert_eq!(
        refused(&mut queue, Command::read(9, 0, 8), page()),
        Refusal::Namespace { nsid: 9 }
    );
    assert_eq!(
        refused(&mut queue, Command::write(1, 0, 8), Data::Anywhere { len: 4096 }),
        Refusal::Anywhere
    );
    assert_eq!(queue.counters().refused, 5);
    assert_eq!(
        rig.model.stats(0).fetched,
        fetched,
        "the controller saw none of them"
    );
    drop(queue);
    rig.close();
}

#[test]
fn memory_that_cannot_be_mapped_is_copied() {
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig.queue(4);
    let done = rig.run(&mut queue, Command::read(1, 0, 8), Data::Anywhere { len: 4096 });
    // Its memory stays with the queue, for the copy.
    drop(done);
    rig.model.space(0).unwrap().refuse_maps(1);
    let done = rig.run(
        &mut queue,
        Command::write(1, 3, 8),
        Data::whole(region(&pattern(3, 1, 4096))),
    );
    assert!(done.completion.is_success());
    assert_eq!(queue.counters().bounced, 1);
    rig.model.space(0).unwrap().refuse_maps(9);
    let large = Data::whole(Region::allocate(1 << 20, 4096).unwrap());
    let done = rig.run(&mut queue, Command::read(1, 0, 2048), large);
    assert!(done.completion.status.is(Status::DATA_TRANSFER_ERROR));
    assert!(matches!(queue.take_refusal(), Some(Refusal::Unreachable(_))));
    rig.model.space(0).unwrap().refuse_maps(0);
    let mut media = vec![0; 4096];
    assert!(rig.model.read_media(1, 3 * 512, &mut media));
    assert_eq!(media, pattern(3, 1, 4096));
    drop(queue);
    rig.close();
}

#[test]
fn memory_comes_back_as_a_buffer() {
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig.queue(4);
    let done = rig.run(
        &mut queue,
        Command::read(1, 0, 8),
        Data::whole(Region::allocate(4096, 4096).unwrap()),
    );
    let usage = || rig.model.space(0).unwrap().dma().usage();
    let before = usage().unmapped;
    assert!(queue.take_back(done.data).is_ok());
    assert_eq!(usage().unmapped, before + 1);
    drop(queue);
    rig.close();
}

#[test]
fn mappings_are_kept_and_bounded() {
    let rig = Rig::with(SoftConfig::default(), options().kept_mappings(4, 1 << 20));
    let mut queue = rig.queue(4);
    let regions: Vec<_> = (0..6).map(|_| Region::allocate(4096, 4096).unwrap()).collect();
    for round in 0..3 {
        for region in &regions[..4] {
            rig.run(&mut queue, Command::read(1, 0, 8), Data::whole(region.clone()));
        }
        assert_eq!(queue.counters().mapped, 4, "round {round}");
    }
    let usage = || rig.model.space(0).unwrap().dma().usage();
    let before = usage();
    for region in &regions {
        rig.run(&mut queue, Command::read(1, 0, 8), Data::whole(region.clone()));
    }
    let after = usage();
    assert_eq!(after.mapped - after.unmapped, before.mapped - before.unmapped);
    // Mapped for all queues, they need no mapping of a queue's own.
    let mapped: Vec<_> = regions
        .iter()
        .map(|region| rig.controller.map(region).unwrap())
        .collect();
    let mut other = rig.queue(4);
    for region in &regions {
        rig.run(&mut other, Command::read(1, 0, 8), Data::whole(region.clone()));
    }
    assert_eq!(other.counters().mapped, 0);
    drop(mapped);
    let before = usage().unmapped;
    other.commit().unwrap();
    assert_eq!(
        usage().unmapped,
        before + 6,
        "the queue lets go with its next commit"
    );
    queue.commit().unwrap();
    drop((queue, other));
    rig.close();
}

#[test]
fn a_sleeper_is_woken_by_the_interrupt() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let rig = Rig::new(SoftConfig::default());
    let mut queue = rig
        .controller
        .open_queue(QueueOptions::new(8).interrupts(Interrupts::On))
        .unwrap();
    let ready = |queue: &homi_nvme::IoQueue| {
        let mut fds = [PollFd::new(queue.wait_descriptor().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    };
    for round in 1..=3 {
        submit(&mut queue, Command::flush(1), Data::None);
        queue.commit().unwrap();
        assert!(!ready(&queue), "nothing happened yet");
        rig.model.run_until_idle();
        assert!(ready(&queue));
        let mut done = Vec::new();
        assert_eq!(queue.poll(&mut done).unwrap(), 1);
        assert_eq!(queue.counters().interrupts, round);
        assert!(!ready(&queue), "taken");
        queue.poll(&mut done).unwrap();
    }
    assert!(rig.queue(4).wait_descriptor().is_none());
    drop(queue);
    rig.close();
}

#[test]
fn queues_come_and_go_while_others_run() {
    let rig = Rig::new(SoftConfig::default());
    let mut stays = rig.queue(8);
    for round in 0..20 {
        submit(
            &mut stays,
            Command::write(1, 0, 8),
            Data::whole(region(&pattern(0, round, 4096))),
        );
        stays.commit().unwrap();
        let mut others: Vec<_> = (0..4).map(|_| rig.queue(3)).collect();
        for queue in &mut others {
            assert!(
                rig.run(queue, Command::flush(1), Data::None)
                    .completion
                    .is_success()
            );
        }
        // Two with commands in flight.
        submit(
            &mut others[0],
            Command::read(1, 0, 8),
            Data::Anywhere { len: 4096 },
        );
        submit(
            &mut others[1],
            Command::read(1, 0, 8),
            Data::Anywhere { len: 4096 },
        );
        others[0].commit().unwrap();
        drop(others);
        rig.finish(&mut stays, 1).unwrap();
    }
    let all: Vec<_> = (0..7).map(|_| rig.queue(2)).collect();
    let error = rig.controller.open_queue(QueueOptions::new(2)).unwrap_err();
    assert!(error.to_string().contains("granted 8"), "{error}");
    drop((all, stays));
    rig.close();
}

#[test]
fn larger_pages_blocks_and_strides_work() {
    let config = SoftConfig {
        mpsmin: 2,
        mpsmax: 2,
        dstrd: 3,
        mdts: 3,
        doorbell_buffer: true,
        namespaces: vec![
            NamespaceConfig::new(1 << 14, 12),
            NamespaceConfig::new(1 << 10, 9),
        ],
        ..SoftConfig::default()
    };
    let rig = Rig::new(config);
    let info = rig.controller.info().unwrap();
    assert_eq!((info.page_size(), info.max_transfer()), (16 << 10, 128 << 10));
    let mut queue = rig.queue(8);
    let written = pattern(0, 3, 512 << 10);
    for (nsid, blocks) in [(1, 128), (2, 1024)] {
        let done = rig.run(
            &mut queue,
            Command::write(nsid, 0, blocks),
            Data::whole(region(&written)),
        );
        assert!(done.completion.is_success(), "{:?}", done.completion);
        let done = rig.run(
            &mut queue,
            Command::read(nsid, 0, blocks),
            Data::Anywhere { len: 512 << 10 },
        );
        assert!(bytes(&done.data) == written);
    }
    drop(queue);
    rig.close();
}

#[test]
fn a_queue_runs_around_its_ring_at_every_depth() {
    for depth in [1, 2, 3, 7, 64, 1023] {
        let rig = Rig::with(
            SoftConfig {
                shuffle: Some(u64::from(depth)),
                ..SoftConfig::default()
            },
            Options::new(),
        );
        let mut queue = rig.queue(depth);
        assert_eq!(queue.depth(), depth);
        let mut left = 3 * usize::from(depth) + 5;
        let mut done = Vec::new();
        while left > 0 || queue.in_flight() > 0 {
            while left > 0
                && let Ok(slot) = queue.reserve()
            {
                queue.submit(slot, Command::flush(1), Data::None);
                left -= 1;
            }
            queue.commit().unwrap();
            rig.model.step();
            queue.poll(&mut done).unwrap();
        }
        assert_eq!(done.len(), 3 * usize::from(depth) + 5);
        drop(queue);
        rig.close();
    }
}
