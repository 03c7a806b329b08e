// What a wrong config.json is told.

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"

using namespace shardwright;

namespace {

std::vector<Finding> findingsOf(const std::string& text)
{
    try {
        modelFromJson(parseJson(text, "config.json"), "test", "config.json");
    } catch (const InputError& error) {
        return error.findings();
    }
    return {};
}

std::string told(const std::vector<Finding>& findings)
{
    std::string text;
    for (const Finding& finding : findings)
        text += finding.text() + "\n";
    return text;
}

const std::string kLlama = R"("model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 8, "intermediate_size": 96, "vocab_size": 100)";

class ScratchFolder {
public:
    ScratchFolder() : m_path(std::filesystem::path(testing::TempDir()) / "shardwright-model-errors")
    {
        std::filesystem::create_directories(m_path);
    }
    ~ScratchFolder() { std::filesystem::remove_all(m_path); }
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;
    std::string path() const { return m_path.string(); }

private:
    std::filesystem::path m_path;
};

} // namespace

TEST(ModelErrors, extraKeysOfAHuggingFaceConfigAreNormal)
{
    EXPECT_TRUE(
        findingsOf("{" + kLlama + R"(, "rope_theta": 1e4, "torch_dtype": "bfloat16", "pad_token_id": null})").empty());
}

TEST(ModelErrors, nullIsAbsent)
{
    const std::string text =
        "{" + kLlama + R"(, "num_key_value_heads": null, "head_dim": null, "tie_word_embeddings": null})";
    const Model model = modelFromJson(parseJson(text, "t"), "t", "t");
    EXPECT_EQ(model.architecture.kvHeads, 8);
    EXPECT_EQ(model.architecture.headDim, 8);
    EXPECT_FALSE(model.architecture.tiedEmbedding);
}

TEST(ModelErrors, allMissingFieldsAreToldAtOnce)
{
    const auto findings = findingsOf(R"({"model_type": "llama", "vocab_size": 100})");
    EXPECT_EQ(findings.size(), 4U) << told(findings);
    for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"})
        EXPECT_NE(told(findings).find(field), std::string::npos) << field;
}

TEST(ModelErrors, impossibleDimensionsAreToldAtOnceWithTheirPlaces)
{
    const auto findings = findingsOf(R"({"model_type": "llama", "hidden_size": 100, "num_hidden_layers": 0,
        "num_attention_heads": 8, "num_key_value_heads": 3, "intermediate_size": -1, "vocab_size": "many"})");
    EXPECT_EQ(findings.size(), 5U) << told(findings);
    const std::string text = told(findings);
    for (const char* part : {"/num_hidden_layers", "/intermediate_size", "/vocab_size",
                             "num_attention_heads 8 does not divide hidden_size 100",
                             "num_key_value_heads 3 does not divide num_attention_heads 8"})
        EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
}

TEST(ModelErrors, aConfigInsideAnotherFileKeepsItsPointer)
{
    try {
        modelFromJson(parseJson(R"({"model_type": "gpt2"})", "s"), "m", "scenario.json", "/model");
        FAIL();
    } catch (const InputError& error) {
        EXPECT_EQ(error.findings().front().file, "scenario.json");
        EXPECT_EQ(error.findings().front().place, "/model");
    }
}

TEST(ModelErrors, unknownTypeNamesTheSupportedOnesAndTheGenericFields)
{
    const auto findings = findingsOf(R"({"model_type": "lama"})");
    ASSERT_EQ(findings.size(), 1U);
    EXPECT_EQ(findings[0].place, "/model_type");
    EXPECT_NE(findings[0].expected.find("\"llama\" perhaps"), std::string::npos);
    for (const std::string& type : supportedModelTypes())
        EXPECT_NE(findings[0].expected.find(type), std::string::npos) << type;
    for (const char* field : {"hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "norm", "bias"})
        EXPECT_NE(findings[0].expected.find(field), std::string::npos) << field;
}

TEST(ModelErrors, theGenericDecoderIsReadStrictly)
{
    const auto findings = findingsOf(R"({"model_type": "generic-decoder", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 8, "intermediate_size": 96, "vocab_size": 100, "learned_position": true,
        "norm": "batch"})");
    ASSERT_EQ(findings.size(), 2U) << told(findings);
    EXPECT_NE(told(findings).find("\"learned_positions\" perhaps"), std::string::npos);
    EXPECT_NE(told(findings).find("rms or layer"), std::string::npos);
}

TEST(ModelErrors, hugeButCountableModelsAreCounted)
{
    // 12 x 1000 x (300,000)^2 = 1.08e15 parameters in blocks.
    const Model model = modelFromJson(parseJson(R"({"model_type": "gpt2", "n_embd": 300000, "n_layer": 1000,
        "n_head": 1000, "n_positions": 1, "vocab_size": 1})",
                                                "t"),
                                      "t", "t");
    const std::int64_t h = 300000;
    EXPECT_EQ(model.parameters(), 1000 * (12 * h * h + 13 * h) + 2 * h + 2 * h);
}

TEST(ModelErrors, numbersPastSixtyFourBitsAreAnErrorOfTheFile)
{
    const auto findings = findingsOf(R"({"model_type": "gpt2", "n_embd": 4000000000000, "n_layer": 2, "n_head": 1,
        "n_positions": 1, "vocab_size": 1})");
    ASSERT_EQ(findings.size(), 1U);
    EXPECT_EQ(findings[0].file, "config.json");
    EXPECT_NE(findings[0].what.find("too large to count"), std::string::npos) << findings[0].what;
}

TEST(ModelErrors, hostileCountsOfLayersAndExpertsAreRefused)
{
    const auto layers = findingsOf(R"({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2000000000,
        "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8})");
    ASSERT_EQ(layers.size(), 1U);
    EXPECT_EQ(layers[0].place, "/num_hidden_layers");
    EXPECT_NE(layers[0].expected.find("100000"), std::string::npos);
    const auto experts = findingsOf(R"({"model_type": "mixtral", "hidden_size": 8, "num_hidden_layers": 100000,
        "num_attention_heads": 8, "intermediate_size": 8, "vocab_size": 8, "num_local_experts": 1000000,
        "num_experts_per_tok": 1})");
    ASSERT_EQ(experts.size(), 1U) << told(experts);
    EXPECT_NE(experts[0].what.find("parameter tensors"), std::string::npos);
}

RC_GTEST_PROP(ModelErrors, anyValuesGiveAModelOrAnInputError, ())
{
    const std::string type = *rc::gen::elementOf(supportedModelTypes());
    const std::vector<Json> values = {
        nullptr,       0,          -1,  1,     2,    8,     64,  1000,    99999999,
        INT64_MAX,     UINT64_MAX, 0.5, 1e300, true, false, "8", "layer", Json::array({1, -2, "x"}),
        Json::object()};
    Json config = {{"model_type", type}};
    for (const char* key : {"hidden_size",
                            "n_embd",
                            "d_model",
                            "num_hidden_layers",
                            "n_layer",
                            "n_layers",
                            "num_attention_heads",
                            "n_head",
                            "n_heads",
                            "num_key_value_heads",
                            "num_kv_heads",
                            "head_dim",
                            "intermediate_size",
                            "ffn_dim",
                            "vocab_size",
                            "max_position_embeddings",
                            "n_positions",
                            "max_seq_len",
                            "num_experts",
                            "num_local_experts",
                            "n_routed_experts",
                            "num_experts_per_tok",
                            "moe_intermediate_size",
                            "shared_expert_intermediate_size",
                            "decoder_sparse_step",
                            "mlp_only_layers",
                            "moe_layer_freq",
                            "kv_lora_rank",
                            "q_lora_rank",
                            "qk_nope_head_dim",
                            "qk_rope_head_dim",
                            "v_head_dim",
                            "attn_config",
                            "tie_word_embeddings",
                            "dropout"})
        if (*rc::gen::inRange(0, 12) == 0)
            config[key] = *rc::gen::elementOf(values);
        else
            config[key] = *rc::gen::element(1, 2, 8);
    try {
        const Model model = modelFromJson(config, "any", "any");
        RC_ASSERT(model.parameters() > 0);
        RC_ASSERT(model.activeParameters() <= model.parameters());
        RC_ASSERT(static_cast<std::int64_t>(model.layers.size()) == model.architecture.layers + 3);
    } catch (const InputError& error) {
        RC_ASSERT(!error.findings().empty());
    }
}

TEST(ModelErrors, moreExpertsPerTokenThanExpertsIsAnError)
{
    EXPECT_EQ(findingsOf(R"({"model_type": "mixtral", "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 8, "intermediate_size": 8, "vocab_size": 8, "num_local_experts": 4,
        "num_experts_per_tok": 5})")
                  .size(),
              1U);
}

TEST(ModelErrors, aFolderAFileAndAnIdGiveTheSameModel)
{
    const std::string folder = homeFolder() + "/models/gpt2";
    const Model byId = readModel("gpt2");
    EXPECT_EQ(byId.id, "gpt2");
    EXPECT_EQ(readModel(folder).parameters(), byId.parameters());
    EXPECT_EQ(readModel(folder + "/config.json").parameters(), byId.parameters());
    EXPECT_EQ(readModel(folder).id, "gpt2"); // a folder that ships is known by its id
}

TEST(ModelErrors, aModelOfTheUsersOwnIsNamedByItsPath)
{
    const ScratchFolder scratch;
    std::ofstream(scratch.path() + "/config.json") << "{" << kLlama << "}";
    EXPECT_EQ(readModel(scratch.path()).id, scratch.path());
    EXPECT_EQ(readModel(scratch.path() + "/config.json").source, scratch.path() + "/config.json");
}

TEST(ModelErrors, whatIsNoModelIsSaidSo)
{
    const ScratchFolder scratch;
    EXPECT_THROW(readModel(scratch.path()), InputError);              // no config.json in it
    EXPECT_THROW(readModel(scratch.path() + "/nowhere"), InputError); // no such folder
    try {
        readModel("lama-2-7b");
        FAIL();
    } catch (const InputError& error) {
        EXPECT_NE(std::string(error.what()).find("\"llama-2-7b\" perhaps"), std::string::npos) << error.what();
    }
}
