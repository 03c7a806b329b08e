#include "executor/state/checkpoint.hpp"

#include <filesystem>
#include <fstream>
#include <numeric>

#include <gtest/gtest.h>

#include "core/diagnostics.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "executor/elements.hpp"
#include "executor/state/safetensors.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = R"({"model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
  "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 11,
  "max_position_embeddings": 16, "tie_word_embeddings": false})";

/// A rank that is the only one.
class Alone final : public Transport {
public:
    int ranks() const override { return 1; }
    int rank() const override { return 0; }
    std::string name() const override { return "alone"; }
    std::unique_ptr<Communicator> communicator(const Group&) override { return nullptr; }
    double sum(double value) override { return value; }
    void abort(const std::string&) noexcept override {}
};

class CheckpointTest : public ::testing::Test {
protected:
    void SetUp() override
    {
        m_model = modelFromJson(parseJson(kConfig, "config"), "tiny", "config");
        m_parameters = listParameters(m_model);
    }

    std::string path(const std::string& name) const { return m_folder.file(name); }

    /// Whole tensors of all three quantities, every element another number; parameters in `dtype`.
    struct Held {
        std::vector<std::vector<char>> memory;
        TrainingState state;
    };
    Held held(bool filled, DType dtype = DType::Fp32)
    {
        Held result;
        float value = 1;
        for (std::size_t i = 0; i < m_parameters.size(); ++i)
            for (int kind = 0; kind < 3; ++kind) {
                const DType type = kind == 0 ? dtype : DType::Fp32;
                const std::int64_t count = m_parameters[i].numel;
                result.memory.emplace_back(static_cast<std::size_t>(bytesOf(count, type).count()));
                std::vector<float> values(static_cast<std::size_t>(count), 0.0F);
                if (filled)
                    std::iota(values.begin(), values.end(), value += 0.125F);
                convertElements(values.data(), DType::Fp32, result.memory.back().data(), type, count);
                StatePiece piece;
                piece.quantity = kind == 0 ? Quantity::Parameters : Quantity::Moments;
                piece.moment = std::max(0, kind - 1);
                piece.tensor = static_cast<std::int32_t>(i);
                piece.count = count;
                piece.values = {result.memory.back().data(), count, type};
                result.state.pieces.push_back(piece);
            }
        result.state.step = filled ? 20 : 0;
        return result;
    }

    std::string failure(const std::string& folder)
    {
        Held empty = held(false);
        try {
            loadCheckpoint(checkpointFolder(folder), m_model, empty.state);
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    }

    TemporaryFolder m_folder;
    Model m_model;
    std::vector<NamedParameter> m_parameters;
    Alone m_alone;
};

TEST_F(CheckpointTest, ComesBackBitByBit)
{
    for (const DType dtype : {DType::Fp32, DType::Bf16}) {
        const Held saved = held(true, dtype);
        saveCheckpoint(path(stepFolder(20)), m_model, kConfig, saved.state, m_alone);
        Held loaded = held(false, dtype);
        loadCheckpoint(checkpointFolder(m_folder.path()), m_model, loaded.state);
        EXPECT_EQ(loaded.memory, saved.memory);
        EXPECT_EQ(loaded.state.step, 20);
    }
}

TEST_F(CheckpointTest, AnyShardingOfItIsTheSame)
{
    const Held saved = held(true);
    saveCheckpoint(path("a"), m_model, kConfig, saved.state, m_alone);
    std::string before = path("a");
    for (const int ranks : {3, 7, 1, 8}) {
        const std::string sharded = path("sharded" + std::to_string(ranks));
        const std::string full = path("full" + std::to_string(ranks));
        convertCheckpoint(before, sharded, CheckpointKind::Sharded, ranks);
        EXPECT_EQ(readManifest(sharded).files.size(), static_cast<std::size_t>(ranks));
        convertCheckpoint(sharded, full, CheckpointKind::Full, 0);
        for (const std::string& folder : {sharded, full}) {
            Held loaded = held(false);
            loadCheckpoint(folder, m_model, loaded.state);
            EXPECT_EQ(loaded.memory, saved.memory) << folder;
        }
        before = full;
    }
    // The weights of a full checkpoint are a Hugging Face file: names, shapes, the metadata that transformers wants.
    const SafetensorsFile file(before + "/model.safetensors");
    EXPECT_EQ(file.header().metadata.at("format"), "pt");
    for (const NamedParameter& parameter : m_parameters) {
        ASSERT_NE(file.header().find(parameter.name), nullptr) << parameter.name;
        EXPECT_EQ(file.header().find(parameter.name)->shape, parameter.shape);
    }
}

TEST_F(CheckpointTest, WithoutManifestItIsNone)
{
    const Held saved = held(true);
    saveCheckpoint(path(stepFolder(10)), m_model, kConfig, saved.state, m_alone);
    fs::create_directories(path(stepFolder(20))); // a run that was killed while it saved
    EXPECT_EQ(checkpointFolder(m_folder.path()), path(stepFolder(10)));
    fs::remove(path(stepFolder(10)) + "/manifest.json");
    EXPECT_NE(failure(m_folder.path()).find("no complete checkpoint"), std::string::npos);
}

TEST_F(CheckpointTest, BrokenFilesAreNamed)
{
    const Held saved = held(true);
    const std::string folder = path("broken");
    saveCheckpoint(folder, m_model, kConfig, saved.state, m_alone);
    const std::string file = folder + "/rank-00000-of-00001.safetensors";

    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(-3, std::ios::end);
    stream.put('x');
    stream.close();
    EXPECT_NE(failure(folder).find(file + ": contents: the bytes are not those that were saved"), std::string::npos)
        << failure(folder);

    fs::resize_file(file, fs::file_size(file) - 4);
    EXPECT_NE(failure(folder).find(file + " has "), std::string::npos) << failure(folder);
    fs::remove(file);
    EXPECT_NE(failure(folder).find(file + " is missing"), std::string::npos) << failure(folder);
}

/// One bit of every third byte of the manifest and of the header, of every 197th of the tensors: the file is named, or
/// nothing that counts has changed.
TEST_F(CheckpointTest, AnyByteThatChangedIsTold)
{
    const Held saved = held(true);
    const std::string folder = path("flipped");
    saveCheckpoint(folder, m_model, kConfig, saved.state, m_alone);
    int told = 0;
    for (const char* name : {"/manifest.json", "/rank-00000-of-00001.safetensors"}) {
        const std::string file = folder + name;
        const std::string text = readTextFile(file);
        const bool tensors = text[0] != '{'; // behind eight bytes with its length, the header
        const std::size_t header =
            tensors ? 8 + static_cast<unsigned char>(text[0]) + 256U * static_cast<unsigned char>(text[1])
                    : text.size();
        for (std::size_t at = 0; at < text.size(); at += at < header ? 3 : 197) {
            std::string changed = text;
            changed[at] ^= static_cast<char>(1U << at % 7);
            std::ofstream(file, std::ios::binary) << changed;
            try {
                Held loaded = held(false);
                loadCheckpoint(checkpointFolder(folder), m_model, loaded.state);
                EXPECT_EQ(loaded.memory, saved.memory) << file << ", byte " << at;
                EXPECT_EQ(loaded.state.step, saved.state.step) << file << ", byte " << at;
            } catch (const InputError& error) {
                EXPECT_EQ(std::string(error.what()).rfind(folder, 0), 0U) << error.what();
                ++told;
            }
        }
        std::ofstream(file, std::ios::binary) << text;
    }
    EXPECT_GT(told, 500);
    EXPECT_EQ(failure(folder), "");
}

TEST_F(CheckpointTest, TheNewestOfManyIsTaken)
{
    const Held saved = held(true);
    for (const std::int64_t step : {999999, 1000000, 20})
        saveCheckpoint(path(stepFolder(step)), m_model, kConfig, saved.state, m_alone);
    EXPECT_EQ(checkpointFolder(m_folder.path()), path("step-1000000"));
    fs::create_directories(path("step-"));
    fs::create_directories(path("step-99999999999999999999"));
    EXPECT_EQ(checkpointFolder(m_folder.path()), path("step-1000000"));
}

TEST_F(CheckpointTest, AnotherModelIsTold)
{
    const Held saved = held(true);
    saveCheckpoint(path("a"), m_model, kConfig, saved.state, m_alone);
    Json config = parseJson(kConfig, "config");
    config["num_hidden_layers"] = 3;
    m_model = modelFromJson(config, "deeper", "config");
    m_parameters = listParameters(m_model);
    EXPECT_NE(failure(path("a")).find("model.layers.2.self_attn.q_proj.weight: is not in the checkpoint"),
              std::string::npos)
        << failure(path("a"));
}

TEST_F(CheckpointTest, NothingIsLeftWhereTheDiskRefuses)
{
    ASSERT_TRUE(fs::exists("/dev/full")); // Linux has it: a disk that is always full
    fs::create_directories(path("refuses"));
    fs::create_symlink("/dev/full", path("refuses/w.safetensors.part"));
    EXPECT_THROW(
        {
            SafetensorsWriter writer(path("refuses/w.safetensors"), {{"a", DType::Fp32, {4}}});
            const float zeros[4] = {};
            writer.append(zeros, sizeof zeros);
            writer.commit();
        },
        EnvironmentError);
    EXPECT_FALSE(fs::exists(path("refuses/w.safetensors")));
}

TEST(Safetensors, HeadersAreHeldToTheFormat)
{
    const auto error = [](const std::string& json, std::int64_t tensorBytes) -> std::string {
        std::string head(8, '\0');
        head[0] = static_cast<char>(json.size());
        head += json;
        try {
            safetensorsHeader(head, static_cast<std::int64_t>(head.size()) + tensorBytes, "w");
        } catch (const InputError& wrong) {
            return wrong.what();
        }
        return "";
    };
    const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    EXPECT_EQ(error(good, 8), "");
    EXPECT_NE(error(good, 7).find("the file has"), std::string::npos);
    EXPECT_NE(error(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8).find("do not fit its dtype"),
              std::string::npos);
    EXPECT_NE(error(R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", 8).find("F99"), std::string::npos);
    EXPECT_NE(error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12).find("no gaps"),
              std::string::npos);
    EXPECT_NE(error(R"({"a":{"dtype":"F32","shape":[4294967295,4294967295],"data_offsets":[0,8]}})", 8), "");
    EXPECT_THROW(safetensorsHeader("abc", 3, "w"), InputError);
    EXPECT_THROW(safetensorsHeader(std::string(8, '\xff'), 8, "w"), InputError);
}

} // namespace
} // namespace shardwright
