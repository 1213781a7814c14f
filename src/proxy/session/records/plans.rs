//! Random [`Plan`]s.

use proptest::collection::vec;
use proptest::prelude::*;

use super::differential::{Message, Plan, Step};

fn message_of_a_plan() -> impl Strategy<Value = Message> {
    prop_oneof![
        4 => (0u16..600).prop_map(Message::Ticket),
        4 => (0u8..2).prop_map(|request| Message::KeyUpdate(vec![request])),
        1 => vec(any::<u8>(), 0..3).prop_map(Message::KeyUpdate),
        1 => (any::<u8>(), 0u32..0x2_0000, 0u16..300)
            .prop_map(|(kind, announced, len)| Message::Other { kind, announced, len }),
        1 => (0u32..0x2_0000, 0u16..300)
            .prop_map(|(announced, len)| Message::Other { kind: 4, announced, len }),
        1 => Just(Message::Ticket(0xffff)),
        1 => (60_000u16..65_535).prop_map(Message::Ticket),
    ]
}

fn step() -> impl Strategy<Value = Vec<Step>> {
    let len = || prop_oneof![8 => 0u16..200, 2 => 0u16..16_385, 1 => 16_380u16..16_390];
    let step = prop_oneof![
        8 => (len(), prop_oneof![3 => Just(0u16), 1 => 0u16..300, 1 => 0u16..16_390])
            .prop_map(|(len, padding)| Step::Data { len, padding }),
        8 => (vec(message_of_a_plan(), 1..4), prop_oneof![Just(0u16), 1u16..40, 1u16..16_384])
            .prop_map(|(messages, fragment)| Step::Messages { messages, fragment }),
        2 => (0u8..2).prop_map(|request| Step::Messages {
            messages: vec![Message::KeyUpdate(vec![request])],
            fragment: 0,
        }),
        3 => len().prop_map(|len| Step::Answer { len }),
        1 => prop_oneof![
            Just(vec![1, 0]),
            Just(vec![1, 90]),
            Just(vec![2, 90]),
            vec(any::<u8>(), 0..4),
        ]
        .prop_map(Step::Alert),
        1 => (prop_oneof![Just(0u8), Just(20), Just(22), any::<u8>()], len())
            .prop_map(|(kind, len)| Step::Inner { kind, len }),
        1 => (
            prop_oneof![3 => Just(23u8), 1 => 20u8..25, 1 => any::<u8>()],
            prop_oneof![3 => Just(0x0303u16), 1 => any::<u16>()],
            prop_oneof![Just(0u16), 0u16..3, any::<u16>()],
        )
            .prop_map(|(kind, version, longer)| Step::Outer { kind, version, longer }),
        1 => (len(), any::<u16>()).prop_map(|(len, at)| Step::Flipped { len, at }),
        1 => vec(any::<u8>(), 0..40).prop_map(Step::Junk),
    ];
    // Limits on repetitions are within reach.
    let times = prop_oneof![20 => Just(1usize), 1 => 30usize..36];
    (step, times).prop_map(|(step, times)| std::iter::repeat_n(step, times).collect())
}

/// Plans that a server might follow, and ones that only an attacker would.
pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let cut = prop_oneof![1 => Just(1u16), 2 => 1u16..40, 2 => any::<u16>()];
    (vec(step(), 0..12), vec(cut, 0..4), any::<bool>()).prop_map(|(steps, cuts, close)| Plan {
        steps: steps.concat(),
        cuts,
        close,
    })
}
