#include "tests/planner/execution/recording_input.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/activations/activation_model.hpp"
#include "tests/planner/execution/recorded_schedule.hpp"

namespace shardwright {

std::string Conditions::text() const
{
    return fmt::format("{} x {} ranks, accumulation {}, {}{}", nodes, gpusPerNode, accumulation,
                       mixed ? nameOf(*mixed) : "fp32", tied ? ", tied" : "");
}

SmallInput recordingInput(const StrategyOptions& options, const Conditions& conditions)
{
    SmallInput input(options, conditions.gpusPerNode, conditions.nodes);
    LlamaShape shape;
    shape.tied = conditions.tied;
    shape.hidden = 6;
    shape.ffn = 11;
    shape.vocab = 13;
    shape.headDim = 2;
    input.model = llamaOf(shape);
    input.training.implementation = Implementation::Shardrun;
    input.training.gradientAccumulation = conditions.accumulation;
    input.training.precision.mixed = conditions.mixed;
    input.training.checkpointing = conditions.checkpointing;
    input.training.optimizer = conditions.optimizer;
    return input;
}

Model smallGpt2()
{
    return modelFromJson({{"architectures", {"GPT2LMHeadModel"}},
                          {"model_type", "gpt2"},
                          {"n_embd", 6},
                          {"n_layer", 2},
                          {"n_head", 2},
                          {"n_positions", 16},
                          {"vocab_size", 13},
                          {"embd_pdrop", 0},
                          {"attn_pdrop", 0},
                          {"resid_pdrop", 0}},
                         "small-gpt2", "test");
}

DeepSpeedOptions fittedToTwo(const StrategyOptions& options, std::int64_t bufferElements)
{
    DeepSpeedOptions fitted = std::get<DeepSpeedOptions>(options);
    fitted.hpzPartitionSize = std::min<std::int64_t>(fitted.hpzPartitionSize, 2);
    fitted.micsShardSize = std::min<std::int64_t>(fitted.micsShardSize, 2);
    fitted.maxInCpu = 0;
    fitted.optimizerBufferCount = 8;
    fitted.paramBufferSize = bufferElements;
    return fitted;
}

std::string textOf(const std::vector<std::string>& problems)
{
    std::string text;
    for (const std::string& problem : problems)
        text += "\n  " + problem;
    return text;
}

void expectSound(const std::string& name, const StrategyOptions& options, const Conditions& conditions)
{
    const SmallInput input = recordingInput(options, conditions);
    if (!refusals(input.input()).empty())
        return;
    EXPECT_EQ(textOf(recordingProblems(input.input())), "") << name << ", " << conditions.text();
}

void expectEveryActionCounts(const std::string& name, const SmallInput& input,
                             bool (*inVain)(const Schedule& schedule, std::size_t action))
{
    const auto rules = input.rules();
    const Schedule schedule = rules->emit();
    const std::int64_t ranks = input.cluster.gpusPerNode * input.cluster.nodes;
    for (std::size_t i = 0; i < schedule.actions.size(); ++i) {
        const Verb verb = schedule.actions[i].verb;
        if (verb == Verb::Compute || verb == Verb::LoadBatch || verb == Verb::Initialize ||
            (inVain != nullptr && inVain(schedule, i)))
            continue;
        Schedule broken = schedule;
        broken.actions[i] = Action{};
        broken.actions[i].verb = Verb::LoadBatch;
        broken.actions[i].eventsBefore = schedule.actions[i].eventsBefore;
        EXPECT_FALSE(
            problemsOf({broken, input.model, input.training, ranks, rules->activations()->classes().size()}).empty())
            << name << ": without action " << i << ", " << nameOf(verb);
    }
}

} // namespace shardwright
