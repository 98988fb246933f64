"""The configurations of streams and consumers, and the description of differences."""

from typing import Any

import pytest

from jsq.broker.jobs.records import RECORD_SECONDS
from jsq.broker.topology import configs as layout
from jsq.broker.topology.configs import (
    DAY_NS,
    ID_SECONDS,
    MAX_DELIVER,
    NS,
    Config,
    advisories_config,
    bucket_config,
    config_differences,
    events_config,
    group_state_config,
    groups_config,
    queue_consumer,
    ready_config,
    records_config,
    rewritten_sources,
    scheduled_config,
    settings_of,
    tick_consumer,
)
from jsq.broker.topology.subjects import PROGRESS, RESULT, Subjects
from jsq.codec.subject_token import ANY
from jsq.settings import QueueSettings

NAMES = Subjects("shop")
CAREFUL = QueueSettings(replicas=3, max_jobs=10, max_bytes=4096, lease=45.0, concurrency=5, max_crashes=2)


def all_streams(settings: QueueSettings) -> list[Config]:
    return [
        records_config(NAMES, settings.replicas),
        events_config(NAMES, settings.replicas, 30),
        bucket_config(NAMES, "ids", settings.replicas),
        bucket_config(NAMES, "workers", settings.replicas),
        bucket_config(NAMES, "schedules", settings.replicas),
        advisories_config(NAMES, ["mail", "web"], settings.replicas),
        scheduled_config(NAMES, "mail", settings),
        ready_config(NAMES, "mail", settings, declared=True),
    ]


def subjects(config: Config) -> list[str]:
    return config["subjects"] or []


def overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


# -- the configs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", all_streams(CAREFUL), ids=lambda config: config["name"])
def test_every_stream_names_its_namespace_and_has_the_configured_replicas(config: Config) -> None:
    assert config["metadata"]["jsq.namespace"] == "shop"
    assert config["num_replicas"] == 3


def test_no_two_streams_claim_one_subject() -> None:
    claims = [(config["name"], subject) for config in all_streams(CAREFUL) for subject in subjects(config)]

    shared = [
        (one, other) for one in claims for other in claims if one[0] < other[0] and overlap(one[1], other[1])
    ]

    assert shared == []


def test_a_namespace_claims_no_subject_of_another_namespace() -> None:
    claims = [subject for config in all_streams(CAREFUL) for subject in subjects(config)]

    advisory = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.SHOP_READY_"
    assert all(subject.startswith(("shop.", "$KV.shop_", advisory)) for subject in claims)


@pytest.mark.parametrize("level", ["high", "normal", "low"])
def test_every_published_subject_belongs_to_its_stream(level: str) -> None:
    published = {
        NAMES.ready("mail", level, "j1"): ready_config(NAMES, "mail", CAREFUL, declared=True),
        NAMES.scheduled("mail", "j1"): scheduled_config(NAMES, "mail", CAREFUL),
        NAMES.due("mail", level, "j1"): scheduled_config(NAMES, "mail", CAREFUL),
        NAMES.record("mail", "j1"): records_config(NAMES, 1),
        f"{NAMES.record('mail', 'j1')}.{PROGRESS}": records_config(NAMES, 1),
        f"{NAMES.record('mail', 'j1')}.{RESULT}": records_config(NAMES, 1),
        NAMES.checkpoint("mail", "j1", "checkpoint"): records_config(NAMES, 1),
        NAMES.dead("mail", "emails.send", "j1"): records_config(NAMES, 1),
        NAMES.key("ids", "j1"): bucket_config(NAMES, "ids", 1),
        NAMES.next_tick("mail", "nightly"): scheduled_config(NAMES, "mail", CAREFUL),
        NAMES.due_tick("mail", level, "nightly"): scheduled_config(NAMES, "mail", CAREFUL),
        NAMES.key("schedules", "mail.nightly"): bucket_config(NAMES, "schedules", 1),
    }

    for subject, config in published.items():
        assert any(overlap(subject, claimed) for claimed in config["subjects"]), subject


def test_a_queue_refuses_new_jobs_rather_than_dropping_old_ones() -> None:
    config = ready_config(NAMES, "mail", CAREFUL, declared=True)

    assert (config["discard"], config["max_msgs"], config["max_bytes"]) == ("new", 10, 4096)


def test_a_queue_without_limits_has_none() -> None:
    config = ready_config(NAMES, "mail", QueueSettings(), declared=False)

    assert (config["max_msgs"], config["max_bytes"]) == (-1, -1)


def test_a_memory_queue_stores_messages_in_memory_and_records_on_disk() -> None:
    quick = QueueSettings(storage="memory")

    assert {
        scheduled_config(NAMES, "mail", quick)["storage"],
        ready_config(NAMES, "mail", quick, declared=True)["storage"],
    } == {"memory"}
    assert {config["storage"] for config in (records_config(NAMES, 1), events_config(NAMES, 1, 30))} == {
        "file"
    }


def test_no_work_queue_is_sourced_by_another_stream() -> None:
    """The server deletes messages of a replicated work queue that a sourcing stream has not stored yet."""
    streams = [
        ready_config(NAMES, "mail", CAREFUL, declared=True),
        scheduled_config(NAMES, "mail", CAREFUL),
        groups_config(NAMES, "mail", CAREFUL),
        group_state_config(NAMES, "mail", CAREFUL),
        records_config(NAMES, 3),
        events_config(NAMES, 3, 30),
    ]
    retention = {config["name"]: config["retention"] for config in streams}
    sourced = [source["name"] for config in streams for source in config.get("sources") or ()]

    assert {retention[name] for name in sourced} == {"limits"}


def test_a_job_id_stays_claimed_until_the_record_has_expired() -> None:
    assert RECORD_SECONDS < ID_SECONDS
    assert records_config(NAMES, 1)["max_age"] == 30 * DAY_NS > ID_SECONDS * NS


def test_the_record_bucket_never_drops_records_and_keeps_their_history() -> None:
    config = records_config(NAMES, 1)

    assert (config["discard"], config["deny_delete"]) == ("new", True)
    assert config["max_msgs_per_subject"] == 64  # the maximum of a KV bucket
    assert (config["allow_atomic"], config["allow_msg_ttl"], config["allow_direct"]) == (True, True, True)
    assert config["republish"] == {"src": "$KV.shop_jobs.>", "dest": "shop.on.>"}


def test_the_event_log_holds_record_revisions_and_no_other_keys() -> None:
    config = events_config(NAMES, 1, 90)

    assert config["max_age"] == 90 * DAY_NS
    assert config["sources"] == [
        {
            "name": "KV_shop_jobs",
            "subject_transforms": [
                {"src": NAMES.record("*", ANY), "dest": "shop.ev.{{wildcard(1)}}.{{wildcard(2)}}"}
            ],
        }
    ]
    assert not overlap(f"{NAMES.record('mail', 'j1')}.{PROGRESS}", NAMES.record("*", ANY))


def test_a_consumer_delivers_one_priority_with_the_lease_of_the_queue() -> None:
    config = queue_consumer(NAMES, "mail", "high", CAREFUL)

    assert config["filter_subject"] == "shop.q.mail.high.*"
    assert (config["ack_policy"], config["ack_wait"]) == ("explicit", 45 * NS)
    assert (config["max_ack_pending"], config["max_deliver"]) == (5, MAX_DELIVER)


def test_the_tick_consumer_covers_only_ticks_that_are_due() -> None:
    ticks = tick_consumer(NAMES, "mail")

    assert overlap(NAMES.due_tick("mail", "high", "nightly"), ticks["filter_subject"])
    for held in (
        NAMES.next_tick("mail", "nightly"),
        NAMES.scheduled("mail", "j1"),
        NAMES.due("mail", "low", "j1"),
    ):
        assert not overlap(held, ticks["filter_subject"])
    assert ticks["ack_wait"] == 10 * NS


def test_a_consumer_of_an_unlimited_queue_has_no_delivery_limit() -> None:
    assert queue_consumer(NAMES, "mail", "low", QueueSettings())["max_ack_pending"] == -1


def test_the_advisories_of_each_queue_are_kept_and_no_others() -> None:
    config = advisories_config(NAMES, {"web", "mail"}, 3)

    assert config["subjects"] == [
        f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.SHOP_READY_{queue}.*" for queue in ("mail", "web")
    ]


# -- settings in the metadata --------------------------------------------------------------------------------


def test_queue_settings_are_stored_in_the_stream_metadata() -> None:
    assert settings_of(ready_config(NAMES, "mail", CAREFUL, declared=True)) == CAREFUL


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"jsq.queue": ""}, {"jsq.queue": "{"}, {"jsq.queue": '{"lease": -1}'}],
    ids=repr,
)
def test_settings_that_cannot_be_read_are_the_defaults(metadata: Any) -> None:
    assert settings_of({"metadata": metadata}) == QueueSettings()


def test_unknown_settings_of_a_later_release_are_ignored() -> None:
    stored = '{"lease": 60.0, "colour": "red"}'

    assert settings_of({"metadata": {"jsq.queue": stored}}) == QueueSettings(lease=60.0)


# -- differences ---------------------------------------------------------------------------------------------


def test_an_equal_configuration_has_no_differences() -> None:
    config = ready_config(NAMES, "mail", CAREFUL, declared=True)

    assert config_differences(config, dict(config)) == []


def test_fields_that_the_server_adds_are_no_difference() -> None:
    config = group_state_config(NAMES, "mail", CAREFUL)
    source = config["sources"][0] | {"opt_start_seq": 0}
    have = config | {
        "sources": [source],
        "metadata": config["metadata"] | {"_nats.ver": "2.15.1"},
        "max_consumers": -1,
    }

    assert config_differences(config, have) == []


def test_empty_fields_that_the_server_omits_are_no_difference() -> None:
    assert config_differences({"subjects": None, "deny_purge": False}, {}) == []


def test_a_configuration_difference_names_both_values() -> None:
    wanted = queue_consumer(NAMES, "mail", "high", CAREFUL)

    assert config_differences(wanted, wanted | {"max_ack_pending": -1}) == [
        "max_ack_pending is -1, should be 5"
    ]


def test_changed_settings_are_a_difference() -> None:
    wanted = ready_config(NAMES, "mail", CAREFUL, declared=True)
    have = ready_config(NAMES, "mail", QueueSettings(replicas=3), declared=True)

    differences = config_differences(wanted, have)

    assert [line.partition(" ")[0] for line in differences[:2]] == ["max_msgs", "max_bytes"]
    assert "setting max_jobs is null, should be 10" in differences  # each setting that the metadata holds
    assert not [line for line in differences if "metadata" in line or "{" in line]


def test_a_missing_field_is_a_difference() -> None:
    assert config_differences({"max_msgs": 5}, {}) == ["max_msgs is null, should be 5"]


def test_durations_are_reported_in_seconds() -> None:
    wanted = {"ack_wait": 1_500_000_000, "max_age": 7 * layout.DAY_NS}

    assert config_differences(wanted, {"ack_wait": 30_000_000_000}) == [
        "ack_wait is 30 s, should be 1.5 s",
        "max_age is null, should be 604800 s",
    ]


def test_configuration_values_are_shown_as_short_text() -> None:
    assert [layout.format_field("x", value) for value in ("file", ["a"], None)] == ["file", '["a"]', "null"]


def test_sources_in_another_notation_are_no_difference() -> None:
    for config in (group_state_config(NAMES, "mail", CAREFUL), events_config(NAMES, 1, 30)):
        rewritten = rewritten_sources(config)

        assert rewritten["sources"] != config["sources"]
        assert config_differences(config, rewritten) == []
        assert rewritten_sources(rewritten)["sources"] == config["sources"]


def test_another_source_is_a_difference() -> None:
    config, ready = (
        group_state_config(NAMES, "mail", CAREFUL),
        ready_config(NAMES, "mail", CAREFUL, declared=True),
    )

    assert config_differences(config, config | {"sources": None})
    assert config_differences(config, group_state_config(NAMES, "other", CAREFUL))
    assert config_differences(ready, ready | {"sources": config["sources"]})
