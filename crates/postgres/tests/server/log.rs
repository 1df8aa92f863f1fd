//! A replicated log on PostgreSQL does what every log must do.

use std::sync::atomic::{AtomicU32, Ordering};

use prelude_bridge_log::{
    conformance::{self, Factory, Opened, Setup},
    embedded,
};
use tokio::runtime::Handle;

use super::{Options, Server, open, options};

/// Each log has a table of its own.
struct Tables<'a> {
    server: &'a Server,
    count: AtomicU32,
}

impl Factory for Tables<'_> {
    fn open(&self, setup: Setup) -> Opened {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let options = Options {
            table: format!("log_{number}"),
            ..options(self.server)
        };
        let dir = tempfile::tempdir().unwrap();
        let open = async {
            let sequencer = open(options).await.unwrap().sequencer;
            let log = embedded::Options {
                retention_age: setup.retention_age,
                retention_bytes: setup.retention_bytes,
                ..embedded::Options::default()
            };
            embedded::open_replica_at(dir.path(), log, sequencer, &setup.clock)
                .await
                .unwrap()
        };
        let log = tokio::task::block_in_place(|| Handle::current().block_on(open));
        Opened {
            log,
            set_outage: None,
            keep: Box::new(dir),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_log_on_postgresql_conforms() {
    let server = Server::start();
    let tables = Tables {
        server: &server,
        count: AtomicU32::new(0),
    };
    macro_rules! claims {
        ($($name:ident)*) => {
            $(conformance::$name(&tables).await;)*
        };
    }
    claims! {
        a_new_log_is_empty
        events_are_numbered_in_order_without_holes
        concurrent_appends_have_one_order_which_all_see
        repetitions_are_left_out
        what_was_appended_is_remembered_and_asking_changes_nothing
        the_same_id_of_another_app_is_another_event
        the_same_id_of_another_type_is_another_event
        a_duplicate_with_another_content_is_told
        a_place_can_be_found_by_its_time
        time_never_goes_back
        reading_ends_at_its_limit_but_brings_at_least_one_block
        a_large_batch_becomes_several_blocks
        what_is_too_old_expires
        what_is_too_much_expires
        a_log_that_expired_whole_goes_on
        a_closed_log_refuses_and_can_be_read
        an_append_goes_on_when_nobody_waits_for_it
        an_empty_batch_is_nothing
        cursors_of_the_log_belong_to_it
        usage_grows_with_what_is_kept
        a_follower_begins_at_the_head_and_is_handed_every_commit
        followers_have_a_batch_before_it_is_answered
        a_block_that_a_follower_refuses_fails_the_log
        a_follower_that_panics_fails_the_log
        those_who_wait_see_commits_and_the_end
        an_epoch_is_known_before_any_of_its_events
    }
}
