//! Hosts that break the protocol, against the target over every path.

fabric_tests::over_every_path! {
    hostile_hosts =>
    initialization: initialization_and_gone, connected_and_gone, half_an_initialization, another_protocol,
        initialization_that_cannot_be, initialization_twice, units_before_initialization,
        units_of_the_other_side, terminate_request_of_the_host, one_byte_at_a_time;
    connect: data_before_connect, commands_before_connect, more_than_one_command_before_connect,
        connect_that_is_refused, connect_to_what_is_somebody_elses, connect_with_data_of_a_bad_length,
        authentication_that_nobody_asked_for;
    headers: headers_that_cannot_be, a_long_header_with_a_digest, a_wrong_header_digest;
    data: data_for_the_slot_of_a_read, data_for_an_unused_slot, data_with_the_id_of_another_command,
        data_at_a_bad_offset, data_of_a_bad_length, a_last_flag_in_the_wrong_place, data_twice,
        a_wrong_data_digest_before_the_last_unit, a_wrong_data_digest_of_a_command_that_failed,
        a_namespace_that_goes_while_its_write_waits;
    commands: a_descriptor_of_4_gib, a_log_page_of_16_gib, descriptors_that_cannot_be,
        more_commands_than_the_queue_holds, an_id_that_is_in_use, commands_on_the_wrong_queue,
        nothing_leaks_in_completions, too_many_event_requests;
    endings: gone_in_the_middle_of_a_write, the_admin_connection_goes_first;
    resources: writes_whose_data_never_comes, more_data_in_capsules_than_there_are_buffers,
        more_reads_with_digests_than_there_are_buffers;
}
