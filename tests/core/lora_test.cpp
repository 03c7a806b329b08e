// Low-rank adapters, against counts that peft prints (model.print_trainable_parameters()).

#include <gtest/gtest.h>

#include "core/diagnostics.hpp"
#include "core/model_file.hpp"

using namespace shardwright;

namespace {

Lora loraOf(std::int64_t rank, const std::vector<std::string>& targetModules)
{
    Lora lora;
    lora.rank = rank;
    lora.targetModules = targetModules;
    return lora;
}

Model adapted(const char* id, const Lora& lora)
{
    return applyLora(readModel(id), lora, "test", "/lora");
}

} // namespace

TEST(Lora, trainableCountsAreThoseOfPeft)
{
    // "trainable params: 4,194,304 || all params: 6,742,609,920": the default of most Llama-2 tutorials
    const Model llama = adapted("llama-2-7b", loraOf(8, {"q_proj", "v_proj"}));
    EXPECT_EQ(llama.trainableParameters(), 4194304);
    EXPECT_EQ(llama.parameters(), 6742609920);
    // QLoRA's setting at rank 16, every linear module of the blocks
    EXPECT_EQ(adapted("llama-2-7b", loraOf(16, {})).trainableParameters(), 39976960);
    // GPT-2, rank 8, c_attn: 12 blocks of 8 x (768 + 2304)
    EXPECT_EQ(adapted("gpt2", loraOf(8, {"c_attn"})).trainableParameters(), 294912);
    // Falcon-7B, rank 8, query_key_value: 32 blocks of 8 x (4544 + 4672)
    EXPECT_EQ(adapted("falcon-7b", loraOf(8, {"query_key_value"})).trainableParameters(), 2359296);
}

TEST(Lora, anAdapterIsRankByInAndOutByRank)
{
    const Model model = adapted("llama-3-8b", loraOf(4, {"k_proj"}));
    const Model transposed = adapted("gpt2", loraOf(4, {"c_attn"}));
    const auto shapeOf = [](const Model& of, const std::string& name) {
        for (const NamedParameter& parameter : listParameters(of))
            if (parameter.name == name)
                return parameter.shape;
        return std::vector<std::int64_t>{};
    };
    using Shape = std::vector<std::int64_t>;
    EXPECT_EQ(shapeOf(model, "model.layers.5.self_attn.k_proj.lora_A.default.weight"), (Shape{4, 4096}));
    EXPECT_EQ(shapeOf(model, "model.layers.5.self_attn.k_proj.lora_B.default.weight"), (Shape{1024, 4}));
    EXPECT_EQ(shapeOf(transposed, "transformer.h.0.attn.c_attn.lora_A.default.weight"), (Shape{4, 768}));
    EXPECT_EQ(shapeOf(transposed, "transformer.h.0.attn.c_attn.lora_B.default.weight"), (Shape{2304, 4}));
}

TEST(Lora, everythingElseIsFrozenUnlessAskedFor)
{
    const Lora plain = loraOf(8, {"q_proj"});
    const std::int64_t adapters = 32LL * 8 * (4096 + 4096);
    EXPECT_EQ(adapted("llama-2-7b", plain).trainableParameters(), adapters);
    Lora wide = plain;
    wide.trainEmbeddings = true;
    EXPECT_EQ(adapted("llama-2-7b", wide).trainableParameters(), adapters + 2 * 32000 * 4096);
    wide.trainNorms = true;
    EXPECT_EQ(adapted("llama-2-7b", wide).trainableParameters(), adapters + 2 * 32000 * 4096 + (2 * 32 + 1) * 4096);
}

TEST(Lora, targetsMatchTheLastPartsOfAModule)
{
    // "c_proj" is attention's and the MLP's; "attn.c_proj" is one of them.
    const std::int64_t attention = 12LL * 8 * (768 + 768);
    const std::int64_t mlp = 12LL * 8 * (3072 + 768);
    EXPECT_EQ(adapted("gpt2", loraOf(8, {"c_proj"})).trainableParameters(), attention + mlp);
    EXPECT_EQ(adapted("gpt2", loraOf(8, {"attn.c_proj"})).trainableParameters(), attention);
    EXPECT_EQ(adapted("llama-2-7b", loraOf(8, {"lm_head"})).trainableParameters(), 8 * (4096 + 32000));
}

TEST(Lora, everyExpertGetsItsOwnAdapter)
{
    const Model model = adapted("mixtral-8x7b", loraOf(4, {"w1"}));
    EXPECT_EQ(model.trainableParameters(), 32LL * 8 * 4 * (4096 + 14336));
    // A token meets the adapters of the two experts that it is routed to.
    EXPECT_EQ(model.activeParameters() - readModel("mixtral-8x7b").activeParameters(), 32LL * 2 * 4 * (4096 + 14336));
}

TEST(Lora, anUnknownTargetIsToldWithTheModulesThereAre)
{
    try {
        adapted("gpt2", loraOf(8, {"q_proj", "c_attn", "v_proj"}));
        FAIL();
    } catch (const InputError& error) {
        ASSERT_EQ(error.findings().size(), 2U);
        EXPECT_EQ(error.findings()[0].place, "/lora");
        EXPECT_NE(error.findings()[0].what.find("q_proj"), std::string::npos);
        EXPECT_EQ(error.findings()[0].expected, "one of c_attn, c_fc, c_proj");
    }
}
