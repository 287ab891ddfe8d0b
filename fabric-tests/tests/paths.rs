//! The same bodies over every path: in memory, over TCP, and over TCP on readiness events.

fabric_tests::over_every_path! {
    bodies =>
    commands: reads_return_what_was_written, memory_of_any_shape, compare_tells_equal_from_different,
        write_zeroes_with_and_without_deallocation, deallocate_many_ranges,
        flush_verify_and_force_unit_access, every_negotiation;
    sizes: from_one_block_to_the_largest_transfer, small_limits_of_the_target, a_whole_namespace;
    mixes: depth_1, depth_4_on_three_queues, depth_32, depth_128_on_two_queues,
        depth_32_with_digests_and_flow_control;
    errors: blocks_out_of_range, one_bad_range_of_many, namespaces_that_do_not_exist, commands_that_cannot_be,
        a_namespace_that_may_only_be_read, failures_are_in_the_error_log;
    admin: the_controller_describes_itself, namespaces_describe_themselves, controllers_are_listed,
        structures_that_do_not_exist, log_pages, features, what_fails_brings_nothing;
    discovery: each_host_sees_what_it_may_use, referrals_are_listed, the_log_follows_the_configuration,
        an_allow_list_keeps_strangers_out, a_subsystem_that_does_not_exist, a_host_that_is_no_longer_allowed;
    events: namespaces_come_and_go, many_changes_at_once, events_that_are_switched_off,
        the_discovery_log_changes;
    limits: controllers_of_one_host, queues_of_one_controller, connections_of_the_node, connections_of_one_host;
    life: a_silent_host_is_dropped, keep_alive_timeouts_are_rounded_up, a_reset_controller_is_enabled_again,
        a_controller_that_is_shut_down, a_host_that_disconnects, queues_that_come_and_go,
        abort_of_a_write_that_waits_for_its_data, abort_of_what_does_not_exist, disconnect_of_one_queue,
        failures_do_not_use_slots_up, a_reset_with_event_requests_outstanding, keep_alives_around_a_shutdown;
}
