#pragma once

// A small mixture of experts on 8 GPUs.

#include <string_view>

#include "planner/parallelism/model_slice.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {

constexpr std::int64_t kExpertElements = 3 * 16 * 24; // gate, up and down of one expert
constexpr std::int64_t kExpertJobTokens = 32;         // of a sequence

/// 8 experts in each of 3 blocks; two take a token.
struct ExpertJob : SmallInput {
    ExpertJob(const StrategyOptions& options, std::int64_t tensor, std::int64_t expert, std::int64_t expertTensor = 0);
    ModelSlice slice() const { return sliceModel(input()).front(); }
};

/// nullptr where there is none.
const CollectiveTraffic* collectiveOf(const Traffic& traffic, OpKind op, std::string_view group);

/// Expects a schedule that frees nothing twice, and a closed form that agrees with it.
void expectConsistent(const ExpertJob& job);

/// Expects one refusal, with `word` in it.
void expectRefused(const ExpertJob& job, std::string_view word);

} // namespace shardwright
