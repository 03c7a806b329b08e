// Input that nobody should give: each is told with its file, place, what is wrong and what would be right.

#include <cstdint>
#include <filesystem>
#include <functional>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/plan_file.hpp"
#include "executor/state/safetensors.hpp"
#include "tests/executor/cli/program.hpp"

namespace shardwright::testing {

namespace {

namespace fs = std::filesystem;

/// Runs the plan for a step with these options besides.
Ran stepWith(const std::vector<std::string>& options, const std::string& plan = shippedPlan("ddp-4-ranks"))
{
    std::vector<std::string> words{plan, "--steps", "1"};
    words.insert(words.end(), options.begin(), options.end());
    return shardrun(words);
}

void expectRefused(const Ran& ran, const std::string& said, int code = 2)
{
    EXPECT_EQ(ran.exitCode, code) << ran.err;
    EXPECT_EQ(ran.err, said + '\n');
    EXPECT_EQ(ran.out, "");
}

TEST(CliInput, TextsThatAreNoneAreTold)
{
    const TemporaryFolder folder;
    const auto refused = [](const std::string& path, const std::string& what) {
        expectRefused(stepWith({"--data", path}), path + ": " + what);
    };
    refused(folder.write("empty", ""), "0 bytes hold no whole sequence of 32 tokens and the one behind it; expected a "
                                       "text of 33 bytes or more");
    refused(folder.write("short", std::string(32, 'a')),
            "32 bytes hold no whole sequence of 32 tokens and the one behind it; expected a text of 33 bytes or more");
    refused(folder.path(), "is no regular file; expected a text, of which any part can be read again");
    refused("/dev/zero", "is no regular file; expected a text, of which any part can be read again");
    refused(folder.file("missing"), "cannot be opened: No such file or directory; expected the path of a text");
}

TEST(CliInput, TextsOfAnyBytesAndAnySizeAreRead)
{
    const TemporaryFolder folder;
    std::string bytes;
    for (int i = 0; i < 3 * 256; ++i)
        bytes += static_cast<char>(i * 7); // most of it no UTF-8
    EXPECT_EQ(stepWith({"--data", folder.write("bytes", bytes)}).exitCode, 0);
    EXPECT_EQ(stepWith({"--data", folder.write("least", std::string(33, 'a'))}).exitCode, 0);
    const std::string large = folder.write("large", "");
    fs::resize_file(large, std::uintmax_t{3} << 30); // a hole
    EXPECT_EQ(stepWith({"--data", large}).exitCode, 0);
}

class Weights : public ::testing::Test {
protected:
    using Change = std::function<void(std::vector<SafetensorsWriter::Tensor>&)>;

    /// A file of the plan's tensors, all zeros, changed.
    std::string file(DType dtype, const Change& change = {}) const
    {
        const ExecutablePlan plan = readPlanFile(shippedPlan("ddp-4-ranks"));
        std::vector<SafetensorsWriter::Tensor> tensors;
        for (const NamedParameter& parameter : listParameters(plan.model))
            tensors.push_back({parameter.name, dtype, parameter.shape});
        if (change)
            change(tensors);
        const std::string path = m_folder.file("model.safetensors");
        SafetensorsWriter writer(path, tensors);
        for (const SafetensorsWriter::Tensor& tensor : tensors) {
            std::int64_t elements = 1;
            for (const std::int64_t dimension : tensor.shape)
                elements *= dimension;
            const std::string zeros(static_cast<std::size_t>(bytesOf(elements, tensor.dtype).count()), '\0');
            writer.append(zeros.data(), static_cast<std::int64_t>(zeros.size()));
        }
        writer.commit();
        return path;
    }

    /// A word of the header replaced by one as long.
    static void edit(const std::string& path, const std::string& from, const std::string& to)
    {
        std::string text = readTextFile(path);
        text.replace(text.find(from), from.size(), to);
        writeFileDurably(path, text);
    }

    TemporaryFolder m_folder;
};

TEST_F(Weights, OfEveryFloatingDtypeAreRead)
{
    for (const DType dtype : {DType::Fp32, DType::Fp16, DType::Bf16}) {
        const std::string path = file(dtype);
        const Ran ran = stepWith({"--weights", path});
        EXPECT_EQ(ran.exitCode, 0) << ran.err;
        // All weights zero: every token is as likely, ln 257.
        EXPECT_NE(ran.out.find("loss 5.5491"), std::string::npos) << ran.out;
        EXPECT_EQ(stepWith({"--weights", m_folder.path()}).exitCode, 0);
    }
}

TEST_F(Weights, WrongOnesAreAllNamed)
{
    const std::string path = file(DType::Fp32, [](auto& tensors) {
        tensors[0].shape[0] += 1;
        tensors[1].name = "model.layers.0.strange.weight";
        tensors[2].dtype = DType::Int64;
    });
    const Ran ran = stepWith({"--weights", path});
    EXPECT_EQ(ran.exitCode, 2);
    const auto said = lines(ran.err);
    ASSERT_EQ(said.size(), 3U) << ran.err;
    EXPECT_EQ(said[0], path + ": model.embed_tokens.weight: has shape (258, 48); expected (257, 48), as the model's "
                              "config says");
    EXPECT_EQ(said[1], path + ": model.layers.0.input_layernorm.weight: is not in the file; expected shape (48)");
    EXPECT_EQ(said[2],
              path + ": model.layers.0.self_attn.q_proj.weight: has elements of I64; expected F32, F16 or BF16");
}

TEST_F(Weights, TensorsThatTheModelDoesNotHaveAreSaidAndLeft)
{
    const std::string path = file(DType::Fp32, [](auto& tensors) {
        tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::Int64, {4}});
        tensors.push_back({"mask", DType::Int64, {2}});
    });
    edit(path, R"("mask":{"dtype":"I64","shape":[2])", R"("mask":{"dtype":"U64","shape":[2])");
    const Ran ran = stepWith({"--weights", path});
    EXPECT_EQ(ran.exitCode, 0) << ran.err;
    EXPECT_EQ(ran.err, "shardrun: " + path +
                           ": 2 tensors are none of the model's and are not used: "
                           "model.layers.0.self_attn.rotary_emb.inv_freq, mask\n");
}

TEST_F(Weights, OfDtypesThatAreNotComputedWithAreNamed)
{
    const std::string path = file(DType::Fp32, [](auto& tensors) { tensors.back().dtype = DType::Int64; });
    edit(path, R"("I64")", R"("F64")");
    const Ran ran = stepWith({"--weights", path});
    expectRefused(ran, path + ": lm_head.weight: has elements of F64; expected F32, F16 or BF16");
}

TEST_F(Weights, FilesThatAreNoneAreTold)
{
    expectRefused(stepWith({"--weights", m_folder.path()}),
                  m_folder.path() +
                      ": folder: holds no weights; expected model.safetensors or model.safetensors.index.json");
    const std::string empty = m_folder.write("empty.safetensors", "");
    expectRefused(stepWith({"--weights", empty}),
                  empty + ": byte 0: 0 bytes: too short for a safetensors file; expected 8 bytes with the header's "
                          "length, the header, the tensors");
    const std::string pickle = m_folder.write("pytorch_model.bin", std::string(100, 'P'));
    expectRefused(stepWith({"--weights", pickle}), pickle +
                                                       ": byte 0: the header's length leads beyond the file of 100 "
                                                       "bytes; expected a whole safetensors file");
    expectRefused(stepWith({"--weights", "/dev/zero"}),
                  "/dev/zero: file: is no regular file; expected a safetensors file");
    const std::string index = m_folder.write(
        "model.safetensors.index.json", R"({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})");
    expectRefused(stepWith({"--weights", m_folder.path()}),
                  m_folder.file("model-00001-of-00002.safetensors") +
                      ": file: cannot be opened: No such file or directory; expected a readable safetensors file");
}

TEST(CliInput, NumbersOutsideTheirRangeAreTold)
{
    for (const char* steps : {"0", "-1", "1e9", "2.5", "many"})
        expectRefused(shardrun({shippedPlan("ddp-4-ranks"), "--steps", steps}),
                      std::string("command line: --steps: Value ") + steps + " not in range 1 to 1000000000");
    for (const char* rate : {"nan", "inf", "-1", "fast"})
        expectRefused(stepWith({"--learning-rate", rate}), std::string("command line: --learning-rate: \"") + rate +
                                                               "\" is no learning rate; expected 0 or more");
    for (const char* limit : {"0", "-3", "nan", "2 elephants"})
        expectRefused(stepWith({"--memory-limit", limit}), std::string("command line: --memory-limit: \"") + limit +
                                                               "\" is no amount of memory; expected such as 2GiB, "
                                                               "500MB or 1000000");
}

TEST(CliInput, WordsThatAreNoOptionsAreTold)
{
    expectRefused(stepWith({"--wieghts", "x"}), "command line: --wieghts: is no option; expected --weights perhaps");
    expectRefused(stepWith({"more"}),
                  "command line: more: is one argument too many; expected what `shardrun run --help` shows");
    expectRefused(shardrun({"--steps", "3"}),
                  "command line: plan: is missing; expected what `shardrun run --help` shows");
    expectRefused(stepWith({"--nvme"}),
                  "command line: --nvme: has no value or is given twice; expected what `shardrun run --help` shows");
}

TEST(CliInput, ControlCharactersDoNotReachTheTerminal)
{
    expectRefused(shardrun({"no\x1b[31mplan"}),
                  "no?[31mplan: cannot be opened for reading; expected the path of a readable file");
}

TEST(CliInput, RanksThatAreNoneAreTold)
{
    for (const char* solo : {"4/4", "3/3", "3", "-1/4", "a/b", "0/4/4", "/"})
        expectRefused(stepWith({"--solo", solo}), std::string("command line: --solo: \"") + solo +
                                                      "\" is no rank of ranks; expected R/4, R from 0 to 3");
    expectRefused(stepWith({"--solo", ""}), "command line: --solo: is \"\"; expected a rank of ranks, such as 3/64");
    expectRefused(stepWith({"--solo", "0/4", "--checkpoint", "x"}),
                  "command line: --checkpoint: would be of one rank of many under --solo; expected no --checkpoint, "
                  "or all ranks");
}

TEST(CliInput, PlansThatAreNoneAreTold)
{
    const TemporaryFolder folder;
    const auto refused = [](const std::string& path, const std::string& what) {
        const Ran ran = stepWith({}, path);
        EXPECT_EQ(ran.exitCode, 2);
        EXPECT_EQ(ran.err.rfind(path + ": " + what, 0), 0U) << ran.err;
    };
    refused(folder.file("missing"), "cannot be opened for reading; expected the path of a readable file");
    refused(folder.path(), "cannot be read; expected the path of a readable file");
    refused(folder.write("empty", ""), "line 1, column 1: not valid JSON");
    refused(folder.write("scenario", "{}"), "/kind: this is no plan for shardrun; expected a file that `shardplan");
    const std::string text = readTextFile(shippedPlan("ddp-4-ranks"));
    refused(folder.write("cut", text.substr(0, text.size() / 2)), "line 1, column ");
    std::string changed = text;
    changed[changed.size() / 2] ^= 1;
    refused(folder.write("changed", changed), "");
    std::string newer = text;
    newer.replace(newer.find("\"version\":"), 11, "\"version\":9");
    refused(folder.write("newer", newer), "/version: plan format 9");
}

TEST(CliInput, AMemoryLimitIsToldWithCategoriesAndOperation)
{
    const Ran ran = stepWith({"--memory-limit", "1500KiB"});
    EXPECT_EQ(ran.exitCode, 1);
    EXPECT_EQ(lines(ran.err).size(), 1U) << ran.err;
    for (const char* part : {"shardrun: rank ", ": out of device memory: ", " (operation ", " asks for ", "parameters ",
                             "gradients ", "of the limit of 1.46 MiB are live"})
        EXPECT_NE(ran.err.find(part), std::string::npos) << part << " in " << ran.err;
}

/// As the tests under sanitizers cannot: they reserve terabytes of addresses.
TEST(CliInput, ThreadsThatTheMachineDoesNotHaveAreTold)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers reserve more addresses than the limit of this test";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    GTEST_SKIP() << "sanitizers reserve more addresses than the limit of this test";
#endif
#endif
    const Surroundings tight{.addressSpace = std::int64_t{2} << 30};
    const Ran alone = shardrun({shippedPlan("fsdp2-full-shard-1-rank"), "--steps", "1", "--threads", "1024"}, tight);
    EXPECT_EQ(alone.exitCode, 3);
    EXPECT_NE(alone.err.find(" of 1024 computing threads can be had: "), std::string::npos) << alone.err;
    EXPECT_EQ(lines(alone.err).size(), 1U) << alone.err;
    // Of several ranks, one's computing threads may leave no address for another's own thread, which is told first.
    const Ran together = shardrun({shippedPlan("ddp-4-ranks"), "--steps", "1", "--threads", "1024"}, tight);
    EXPECT_EQ(together.exitCode, 3);
    EXPECT_EQ(lines(together.err).size(), 1U) << together.err;
}

} // namespace

} // namespace shardwright::testing
