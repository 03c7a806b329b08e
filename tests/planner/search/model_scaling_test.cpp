#include "planner/search/model_scaling.hpp"

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"

namespace shardwright::search {

namespace {

std::string scaledName(const char* id, std::int64_t heads)
{
    return std::string(id) + " with " + std::to_string(heads) + " heads";
}

/// The model that its family's reader makes of its config with every width doubled.
Model twiceAsWide(const Model& model)
{
    Json config = parseJson(readTextFile(model.source), model.source);
    for (const char* width : {"hidden_size", "n_embd", "n_embed", "d_model", "num_attention_heads", "n_head", "n_heads",
                              "num_key_value_heads", "num_kv_heads", "intermediate_size", "ffn_dim", "n_inner",
                              "moe_intermediate_size", "shared_expert_intermediate_size", "word_embed_proj_dim"})
        if (config.contains(width) && config[width].is_number_integer())
            config[width] = 2 * config[width].get<std::int64_t>();
    return modelFromJson(config, model.id, model.source);
}

TEST(SearchModelScalingTest, TwiceAsWideIsWhatTheFamilysReaderMakesOfSuchAConfig)
{
    for (const char* id : {"llama-2-7b", "llama-3.2-1b", "gpt2", "mixtral-8x7b", "qwen1.5-moe-a2.7b", "gpt-neox-20b",
                           "bloom-560m", "falcon-40b", "gpt-j-6b", "mpt-1b", "megatron-gpt3-tiny"}) {
        const Model model = readModel(id);
        const auto scaled = withHeads(model, 2 * model.architecture.heads);
        ASSERT_TRUE(scaled) << id;
        const Model read = twiceAsWide(model);
        EXPECT_EQ(scaled->id, scaledName(id, 2 * model.architecture.heads));
        EXPECT_EQ(scaled->architecture.hidden, read.architecture.hidden) << id;
        EXPECT_EQ(scaled->architecture.kvHeads, read.architecture.kvHeads) << id;
        EXPECT_EQ(scaled->architecture.headDim, read.architecture.headDim) << id;
        EXPECT_EQ(scaled->architecture.ffn, read.architecture.ffn) << id;
        EXPECT_EQ(scaled->architecture.expertFfn, read.architecture.expertFfn) << id;
        const auto ours = listParameters(*scaled);
        const auto theirs = listParameters(read);
        ASSERT_EQ(ours.size(), theirs.size()) << id;
        for (std::size_t i = 0; i < ours.size(); ++i)
            EXPECT_EQ(ours[i].shape, theirs[i].shape) << id << ": " << ours[i].name;
    }
}

TEST(SearchModelScalingTest, MlpsAreRoundedToWhatTheirWidthIsMadeOf)
{
    // 11008 = 43 x 256. 40 of 32 heads: 53.75 x 256, and so 54 x 256; Llama-2-13B's own 13824.
    const auto wider = withHeads(readModel("llama-2-7b"), 40);
    ASSERT_TRUE(wider);
    EXPECT_EQ(wider->architecture.hidden, 5120);
    EXPECT_EQ(wider->architecture.ffn, 13824);
    EXPECT_EQ(withBlocks(*wider, 40).parameters(), readModel("llama-2-13b").parameters());
}

TEST(SearchModelScalingTest, WhatHasNoProportionsIsNotScaled)
{
    EXPECT_FALSE(withHeads(readModel("llama-3.2-1b"), 30)); // 32 heads share 8 keys: four each
    EXPECT_FALSE(withHeads(readModel("llama-2-7b"), 0));
    EXPECT_FALSE(withHeads(readModel("deepseek-v2-lite"), 32)); // latent attention
    EXPECT_EQ(usualHeads(readModel("deepseek-v2-lite")), std::vector<std::int64_t>{16});
}

TEST(SearchModelScalingTest, AdaptersKeepTheirRank)
{
    const Model model = applyLora(readModel("llama-2-7b"), {}, "test", "");
    const auto wider = withHeads(model, 64);
    ASSERT_TRUE(wider);
    const Model alike = applyLora(*withHeads(readModel("llama-2-7b"), 64), {}, "test", "");
    EXPECT_EQ(wider->parameters(), alike.parameters());
    EXPECT_EQ(wider->trainableParameters(), alike.trainableParameters());
}

} // namespace

} // namespace shardwright::search
