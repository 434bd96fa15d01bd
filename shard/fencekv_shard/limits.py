"""Every limit of a shard, in one place: units last."""

from __future__ import annotations

from typing import Final

KEY_BYTES_MAX: Final = 1024
KEY_CHARS_SURELY_SHORT: Final = KEY_BYTES_MAX // 4  # a character is four bytes at most
KEY_RESERVED_PREFIX: Final = "\x01"  # keys of FenceKV's own
VALUE_BYTES_MAX: Final = 1 << 20
TXN_OPERATIONS_MAX: Final = 1000
TXN_BYTES_MAX: Final = 10 * 1000 * 1000
TXN_RESULT_BYTES_MAX: Final = 10_000_000  # that the gets of a transaction find
IDEMPOTENCY_KEY_BYTES_MAX: Final = 256
BODY_BYTES_MAX: Final = 16 * 1000 * 1000  # of an HTTP request: a full transaction in base64
LIST_ITEMS_MAX: Final = 1000
LIST_ITEMS_DEFAULT: Final = 100
LIST_BYTES_MAX: Final = 8 << 20  # a page ends early rather than pass this

ROUND_TRANSACTIONS_MAX: Final = 1024
ROUND_BYTES_MAX: Final = 16 << 20
QUEUE_TRANSACTIONS_MAX: Final = 4096  # waiting for a round, a partition
QUEUE_BYTES_MAX: Final = 64 << 20
UNCOMMITTED_TRANSACTIONS_MAX: Final = 8192  # fsynced here, waiting for standbys, a partition
HELD_REQUESTS_MAX: Final = 4096  # held during a planned move
HELD_SECONDS_MAX: Final = 2.0
ALONE_DRAIN_SECONDS: Final = 0.2  # for the drain of an owner that has said that it is alone

OVERLAY_ENTRIES_MAX: Final = 20_000  # journal entries not yet applied; then writers wait
OVERLAY_BYTES_MAX: Final = 64 << 20
REPLAY_SECONDS_MAX: Final = 1.0  # what replaying the overlay after a crash may take, by these estimates:
REPLAY_ENTRY_SECONDS: Final = 40e-6
REPLAY_BYTE_SECONDS: Final = 10e-9
APPLY_ENTRIES: Final = 400  # applied in one step: rounds wait for its commit, a few milliseconds
APPLY_WRITES: Final = 400  # keys that one step touches, unless a single entry has more
APPLY_FILL: Final = 0.5  # of the overlay: above it one applies beside the rounds, below it when there are none
APPLY_IDLE_SECONDS: Final = 0.5  # after the last round
APPLY_FEW_ENTRIES: Final = 32  # no more than this
APPLY_FEW_BYTES: Final = 16 << 10  # and this in the overlay wait for others to come
APPLY_FEW_SECONDS: Final = 20.0  # and are applied after this long at the latest

FOLD_ENTRIES: Final = 256  # folded, or trimmed, in one step: rounds wait for its commit, a few milliseconds
FOLD_WRITES: Final = 400  # keys that one step touches, unless a single round has more
FOLD_BYTES: Final = 1 << 20  # or bytes
FOLD_PAUSE_SECONDS: Final = 0.01  # between steps: rounds go first
FOLD_AGAIN_SECONDS: Final = 5.0  # until what could not go on is tried again
FOLD_LOOK_SECONDS_MAX: Final = 3600.0  # wall clocks jump: nothing is slept through for longer
TRIM_SHARE: Final = 1 / 16  # of the window: how much more than it is kept before it is trimmed
TRIM_SECONDS_MIN: Final = 1.0  # and at least so much more
IDEMPOTENCY_SECONDS_MIN: Final = 24 * 3600  # a result is kept this long, however short the window
BASE_PAGE_KEYS: Final = 256  # read of the base in one turn of the loop
BASE_PAGE_BYTES: Final = 256 << 10
SEED_PAGES_WINDOW: Final = 8  # pages of a seed on their way and not yet durable
SEED_STALL_SECONDS: Final = 30.0  # without a page that became durable, then the base is not kept for it any longer
ENDS_MAX: Final = 4096  # earlier epochs whose ends a replica knows, the last ones
ENDS_INLINE_MAX: Final = 16  # of them, those that `meta.state` repeats in each round
ASIDE_REPLICAS_MAX: Final = 2  # set aside whole and kept for a person, a partition
ASIDE_BYTES_MAX: Final = 4 << 30  # of theirs; the last one is kept whatever its size
TAILS_MAX: Final = 64  # divergent tails set aside and kept, a partition
TAILS_BYTES_MAX: Final = 256 << 20

DISK_RESERVE_BYTES: Final = 64 << 20  # or DISK_RESERVE_SHARE, whichever is larger
DISK_RESERVE_SHARE: Final = 0.05
MAP_BYTES: Final = 16 << 30  # what one environment may hold; files stay as small as their content
MAP_RESERVE_PART: Final = 20  # one in so many is kept beyond it, for what frees room and keeps ownership going

FRAME_BYTES_MAX: Final = 16 << 20
SHIP_ENTRIES_MAX: Final = 1024  # in one append message
SHIP_BYTES_MAX: Final = 4 << 20
SHIP_WINDOW_ENTRIES: Final = 4096  # shipped on one stream and not yet confirmed
FOLLOWS_PER_SECOND: Final = 25  # partitions that begin to follow an owner's pod, of more than
FOLLOWS_AT_ONCE_MAX: Final = 64
FOLLOW_WAIT_SECONDS_MAX: Final = 20.0  # for its turn
TAIL_MESSAGES_MAX: Final = 64  # received on one stream and not yet worked off
JOIN_LAG_ENTRIES_MAX: Final = 64  # a standby this close to the end may join the set
TICK_SECONDS: Final = 0.25  # of the node: silent standbys, pings
TICK_SLICE_SECONDS_MAX: Final = 0.5  # what one tick may count: a long pause was ours, not the standbys'
PEER_SILENCE_SECONDS: Final = 2.0  # then the connection is given up and dialled again
EARLY_SECONDS_MAX: Final = 1.0  # who comes to follow a partition before it is granted here waits this long
STANDBY_TIMEOUT_SECONDS: Final = 1.0  # a counted standby silent this long is asked out of the set
STANDBY_STALL_SECONDS: Final = 3.0  # and one that answers, but has confirmed nothing more for this long
LEASE_READS_MAX: Final = 8  # of all partitions at the API server at a time; session and watches come beside
LEASE_WRITES_MAX: Final = 2
LEASE_RELEASES_MAX: Final = 4
SPARE_CHANGES_PER_SECOND: Final = 20  # of in-sync sets, of those that nobody waits for,
SPARE_CHANGES_MAX: Final = 16  # and so many at once
ALONE_SECONDS: Final = 2.0  # an owner below minInSync this long says so on its partition Lease
DRAIN_SECONDS: Final = 20.0  # for all planned moves at SIGTERM
SUCCESSION_SECONDS_MAX: Final = 3.0  # of it: how long a shard that moved a partition away waits for its new owner
CLOSE_SECONDS: Final = 5.0  # for what is being written when the process ends
FRESH_SECONDS_MAX: Final = 2.0  # a read waits this long for its minimum token
UNCLEAN_ANSWER_SECONDS: Final = 10.0  # a request whose standbys do not confirm is answered Unknown after this
WRITER_THREADS: Final = 4
WRITER_STUCK_SECONDS: Final = 1.0  # then a thread is set aside and a fresh one takes its place
WRITER_THREADS_MAX: Final = 64  # those set aside included
GATHER_SECONDS_MIN: Final = 0.0002  # a round waits this long for clients that were just answered,
GATHER_SHARE: Final = 0.25  # or this part of the last round's time, if that is more,
GATHER_SECONDS_MAX: Final = 0.002  # at most,
GATHER_TURNS_MAX: Final = 64  # and so many turns of the loop at most
