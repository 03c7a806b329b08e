#pragma once

// Plans that nobody would write but somebody who wants shardrun to crash: what a reader accepts is carried out.

#include <random>
#include <string>

#include "core/json.hpp"

namespace shardwright {

/// `body` of a plan with one to three of its numbers, words or rows changed.
Json mutatedPlan(Json body, std::mt19937_64& random);

enum class Fate : std::uint8_t {
    NotRead,    // InputError, or numbers beyond 64 bits
    Refused,    // by the executor, by name, before anything ran
    TooLarge,   // nothing wrong with it, but a test does not want to run it
    Failed,     // a rank ended with a cause
    CarriedOut, // two steps as the last rank, alone
};
struct Tried {
    Fate fate = Fate::NotRead;
    std::string cause;
};

/// What becomes of a plan's text: reads it, asks for refusals and plays two steps of one rank alone. Whatever the plan,
/// this returns.
Tried tryPlan(const std::string& text);

} // namespace shardwright
