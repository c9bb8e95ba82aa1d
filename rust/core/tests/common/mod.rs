//! Losses as tests draw them.

use proptest::prelude::*;

/// What an order or an average could trip over, often, and any other value.
pub fn loss() -> impl Strategy<Value = f32> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
        f32::MIN_POSITIVE / 4.0,
    ];
    prop_oneof![3 => prop::sample::select(special.to_vec()), 1 => prop::num::f32::ANY, 2 => -1.0f32..20.0]
}
