// Layers, leaf modules and dimensions of models, computed by hand from the architectures' papers and configs.

#include <algorithm>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"

using namespace shardwright;

namespace {

ParameterSpec parameterOf(const LayerType& type, const std::string& name)
{
    const auto found = std::find_if(type.parameters.begin(), type.parameters.end(),
                                    [&](const ParameterSpec& parameter) { return parameter.name == name; });
    if (found == type.parameters.end())
        throw std::runtime_error("no parameter " + name);
    return *found;
}

std::vector<std::string> namesOf(const LayerType& type)
{
    std::vector<std::string> names;
    for (const ParameterSpec& parameter : type.parameters)
        names.push_back(parameter.name);
    return names;
}

std::vector<LayerKind> kindsOf(const Model& model)
{
    std::vector<LayerKind> kinds;
    for (std::size_t i = 0; i < model.layers.size(); ++i)
        kinds.push_back(model.layer(i).kind);
    return kinds;
}

Model fromText(const std::string& text)
{
    return modelFromJson(parseJson(text, "test"), "test", "test");
}

} // namespace

TEST(ModelLayers, llama2HasEmbeddingBlocksNormAndHead)
{
    const Model model = readModel("llama-2-7b");
    ASSERT_EQ(model.layers.size(), 1U + 32 + 1 + 1);
    EXPECT_EQ(model.layer(0).kind, LayerKind::Embedding);
    EXPECT_EQ(model.layer(0).numel(), 32000 * 4096);
    const LayerType& block = model.layer(1);
    EXPECT_EQ(block.className, "LlamaDecoderLayer");
    EXPECT_EQ(block.prefix, "model.layers.{}");
    // four square attention matrices, three MLP matrices, two norms
    EXPECT_EQ(block.numel(), 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096);
    EXPECT_EQ(block.tensors(), 9);
    EXPECT_EQ(model.layersOfType(model.layers[1]), 32);
    EXPECT_EQ(model.layer(33).kind, LayerKind::FinalNorm);
    EXPECT_EQ(model.layer(33).numel(), 4096);
    EXPECT_EQ(model.layer(34).kind, LayerKind::Head);
    EXPECT_EQ(model.layer(34).numel(), 32000 * 4096);
    EXPECT_EQ(model.largestTensor(), 32000 * 4096);
}

TEST(ModelLayers, parametersStandInTheOrderOfTheForwardPass)
{
    const std::vector<std::string> expected = {
        "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",    "mlp.up_proj.weight",      "mlp.down_proj.weight"};
    EXPECT_EQ(namesOf(readModel("llama-3-8b").layer(1)), expected);
}

TEST(ModelLayers, groupedQueryAttentionShrinksKeysAndValues)
{
    const LayerType block = readModel("llama-3-70b").layer(1);
    EXPECT_EQ(parameterOf(block, "self_attn.q_proj.weight").shape, (std::vector<std::int64_t>{8192, 8192}));
    EXPECT_EQ(parameterOf(block, "self_attn.k_proj.weight").shape, (std::vector<std::int64_t>{8 * 128, 8192}));
    EXPECT_EQ(parameterOf(block, "self_attn.k_proj.weight").module, "self_attn.k_proj");
}

TEST(ModelLayers, aTiedHeadStandsInTheOrderWithoutParameters)
{
    const Model model = readModel("llama-3.2-1b");
    EXPECT_TRUE(model.architecture.tiedEmbedding);
    const LayerType& head = model.layer(model.layers.size() - 1);
    EXPECT_EQ(head.kind, LayerKind::Head);
    EXPECT_TRUE(head.parameters.empty());
}

TEST(ModelLayers, positionsAndEmbeddingNormsBelongToTheEmbeddingLayer)
{
    EXPECT_EQ(readModel("gpt2").layer(0).numel(), 50257 * 768 + 1024 * 768);
    EXPECT_EQ(namesOf(readModel("gpt2").layer(0)), (std::vector<std::string>{"wte.weight", "wpe.weight"}));
    EXPECT_EQ(readModel("bloom-560m").layer(0).numel(), 250880 * 1024 + 2 * 1024);
    // OPT's table of positions has two rows more than positions; 350m projects its 512-wide embedding to 1024.
    EXPECT_EQ(readModel("opt-350m").layer(0).numel(), 50272 * 512 + (2048 + 2) * 1024 + 512 * 1024);
}

TEST(ModelLayers, gpt2StoresItsMatricesInputFirst)
{
    const ParameterSpec qkv = parameterOf(readModel("gpt2").layer(1), "attn.c_attn.weight");
    EXPECT_EQ(qkv.shape, (std::vector<std::int64_t>{768, 3 * 768}));
    EXPECT_TRUE(qkv.inputFirst);
    EXPECT_FALSE(parameterOf(readModel("gpt-j-6b").layer(1), "attn.q_proj.weight").inputFirst);
}

TEST(ModelLayers, mixtureRepeatsItsExpertsAndListsThemOneByOne)
{
    const Model model = readModel("mixtral-8x7b");
    const LayerType& block = model.layer(1);
    EXPECT_TRUE(block.mixtureOfExperts);
    EXPECT_EQ(parameterOf(block, "block_sparse_moe.experts.{}.w1.weight").repeat, 8);
    // 4096 x 4096 q and o, 1024 x 4096 k and v, 8 experts of 3 x 4096 x 14336, router 8 x 4096, two norms
    EXPECT_EQ(block.numel(), 2LL * 4096 * 4096 + 2LL * 1024 * 4096 + 8LL * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096);
    EXPECT_EQ(block.tensors(), 4 + 8 * 3 + 1 + 2);
    std::int64_t experts = 0;
    for (const NamedParameter& parameter : listParameters(model))
        experts += parameter.name == "model.layers.31.block_sparse_moe.experts.7.w2.weight" ? 1 : 0;
    EXPECT_EQ(experts, 1);
}

TEST(ModelLayers, denseAndSparseBlocksOfOneModelAreDifferentTypes)
{
    const Model model = readModel("deepseek-v3");
    ASSERT_EQ(model.layerTypes.size(), 5U);
    for (std::size_t block = 0; block < 61; ++block)
        EXPECT_EQ(model.layer(1 + block).mixtureOfExperts, block >= 3) << block;
    EXPECT_EQ(model.layersOfType(model.layers[1]), 3);
    EXPECT_EQ(model.layersOfType(model.layers[4]), 58);
    EXPECT_EQ(model.architecture.headDim, 128 + 64);
    EXPECT_EQ(model.architecture.valueHeadDim, 128);
    EXPECT_EQ(model.architecture.sharedExpertFfn, 2048);
}

TEST(ModelLayers, everySecondBlockOfAQwenMixtureCanBeDense)
{
    const Model model = fromText(R"({"model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 96, "vocab_size": 128,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 2,
        "mlp_only_layers": [3]})");
    // 1-based multiples of 2 are mixtures (blocks 1, 3, 5), but block 3 is listed as dense.
    for (std::size_t block = 0; block < 6; ++block)
        EXPECT_EQ(model.layer(1 + block).mixtureOfExperts, block == 1 || block == 5) << block;
}

TEST(ModelLayers, architectureSaysHowABlockIsWired)
{
    const Architecture falcon7b = readModel("falcon-7b").architecture;
    EXPECT_TRUE(falcon7b.parallelAttention);
    EXPECT_EQ(falcon7b.normsPerBlock, 1);
    EXPECT_EQ(falcon7b.kvHeads, 1);
    const Architecture falcon40b = readModel("falcon-40b").architecture;
    EXPECT_TRUE(falcon40b.parallelAttention);
    EXPECT_EQ(falcon40b.normsPerBlock, 2);
    EXPECT_EQ(falcon40b.kvHeads, 8);
    EXPECT_FALSE(readModel("falcon-rw-1b").architecture.parallelAttention);
    EXPECT_EQ(readModel("falcon-rw-1b").architecture.kvHeads, 32);
    EXPECT_EQ(readModel("gemma-2-9b").architecture.normsPerBlock, 4);
    EXPECT_TRUE(readModel("qwen3-8b").architecture.qkNorm);
    EXPECT_FALSE(readModel("qwen2.5-7b").architecture.qkNorm);
    EXPECT_EQ(readModel("phi-2").architecture.mlp, MlpKind::Plain);
    EXPECT_EQ(readModel("llama-2-7b").architecture.norm, NormKind::RmsNorm);
    EXPECT_EQ(readModel("llama-2-7b").architecture.modelType, "llama");
}

TEST(ModelLayers, dropoutIsTheConfigsOwnOrItsClassDefault)
{
    EXPECT_DOUBLE_EQ(readModel("phi-2").architecture.dropout(), 0.1); // resid_pdrop only
    EXPECT_DOUBLE_EQ(readModel("llama-2-7b").architecture.dropout(), 0);
    const char* gpt2 =
        R"({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 32, "vocab_size": 100)";
    EXPECT_DOUBLE_EQ(fromText(std::string(gpt2) + "}").architecture.dropout(), 0.1); // GPT2Config
    EXPECT_DOUBLE_EQ(
        fromText(std::string(gpt2) + R"(, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0})").architecture.dropout(),
        0);
}

TEST(ModelLayers, mptFollowsItsOwnFields)
{
    const std::string head =
        R"({"model_type": "mpt", "d_model": 64, "n_heads": 8, "n_layers": 2, "max_seq_len": 32, "vocab_size": 100)";
    const Model huggingFace = fromText(head + "}");
    EXPECT_EQ(huggingFace.layer(0).numel(), 100 * 64);
    EXPECT_EQ(huggingFace.layer(1).numel(), 12 * 64 * 64 + 2 * 64);
    EXPECT_EQ(huggingFace.layer(1).className, "MptBlock");
    const Model foundry = fromText(head + R"(, "no_bias": false, "attn_config": {"alibi": false}})");
    EXPECT_EQ(foundry.layer(0).numel(), 100 * 64 + 32 * 64);
    EXPECT_EQ(foundry.layer(1).numel(), 12 * 64 * 64 + 13 * 64);
    EXPECT_EQ(foundry.layer(1).className, "MPTBlock");
}

TEST(ModelLayers, aGenericDecoderIsWhatItsFieldsSay)
{
    const Model model = fromText(R"({"model_type": "generic-decoder", "hidden_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 100,
        "max_position_embeddings": 32, "norm": "layer", "mlp": "plain", "bias": true, "learned_positions": true,
        "tie_word_embeddings": true, "layer_class": "Mine"})");
    EXPECT_EQ(kindsOf(model), (std::vector<LayerKind>{LayerKind::Embedding, LayerKind::Block, LayerKind::Block,
                                                      LayerKind::Block, LayerKind::FinalNorm, LayerKind::Head}));
    EXPECT_EQ(model.layer(0).numel(), 100 * 64 + 32 * 64);
    const std::int64_t attention = (64 * 64 + 64) + 2 * (32 * 64 + 32) + (64 * 64 + 64);
    const std::int64_t mlp = (64 * 256 + 256) + (256 * 64 + 64);
    EXPECT_EQ(model.layer(1).numel(), attention + mlp + 2 * 2 * 64);
    EXPECT_EQ(model.layer(1).className, "Mine");
    EXPECT_EQ(model.layer(4).numel(), 2 * 64);
    EXPECT_EQ(model.layer(5).numel(), 0);
}

TEST(ModelLayers, aGenericDecoderCanBeAMixtureWithASharedExpert)
{
    const Model model = fromText(R"({"model_type": "generic-decoder", "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 100, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32})");
    EXPECT_EQ(model.layer(1).numel(), 4 * 64 * 64 + 2 * 64 + 8 * 64 + 8 * 3 * 64 * 16 + 3 * 64 * 32);
    EXPECT_EQ(model.parameters() - model.activeParameters(), (8 - 2) * 3 * 64 * 16);
}

RC_GTEST_PROP(ModelLayers, anyLlamaIsItsFormula, ())
{
    const auto kvHeads = *rc::gen::inRange<std::int64_t>(1, 9);
    const auto heads = kvHeads * *rc::gen::inRange<std::int64_t>(1, 9);
    const auto headDim = *rc::gen::inRange<std::int64_t>(1, 129);
    const auto hidden = heads * headDim;
    const auto layers = *rc::gen::inRange<std::int64_t>(1, 200);
    const auto ffn = *rc::gen::inRange<std::int64_t>(1, 30000);
    const auto vocab = *rc::gen::inRange<std::int64_t>(1, 200000);
    const bool tied = *rc::gen::arbitrary<bool>();
    Json config = {{"model_type", "llama"},        {"hidden_size", hidden},          {"num_hidden_layers", layers},
                   {"num_attention_heads", heads}, {"num_key_value_heads", kvHeads}, {"intermediate_size", ffn},
                   {"vocab_size", vocab},          {"tie_word_embeddings", tied}};
    const Model model = modelFromJson(config, "any", "any");
    const std::int64_t block = 2 * hidden * hidden + 2 * kvHeads * headDim * hidden + 3 * hidden * ffn + 2 * hidden;
    RC_ASSERT(model.parameters() == layers * block + (tied ? 1 : 2) * vocab * hidden + hidden);
}
