// Weights and batches are the same whatever the order and the pieces they are asked for in.

#include "executor/state/sources.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "core/diagnostics.hpp"
#include "tests/paths.hpp"
#include "tests/temporary_folder.hpp"

namespace shardwright {
namespace {

TEST(SyntheticTokens, SequencesAreFixedAndLabelsFollowTokens)
{
    const auto tokens = syntheticTokens(97, 5);
    std::vector<std::int64_t> first(64), labels(64), again(64), labelsAgain(64);
    tokens->read(12, 64, first.data(), labels.data());
    tokens->read(3, 64, again.data(), labelsAgain.data());
    EXPECT_NE(first, again);
    tokens->read(12, 64, again.data(), labelsAgain.data());
    EXPECT_EQ(first, again);
    EXPECT_EQ(labels, labelsAgain);
    for (std::size_t i = 0; i + 1 < first.size(); ++i)
        EXPECT_EQ(labels[i], first[i + 1]);
    for (const std::int64_t token : first)
        EXPECT_TRUE(token >= 0 && token < 97);
}

TEST(SyntheticTokens, EachTokenHasFewSuccessorsOneOfThemHalfOfTheTime)
{
    const auto tokens = syntheticTokens(11, 1);
    std::map<std::int64_t, std::map<std::int64_t, int>> successors;
    std::vector<std::int64_t> sequence(1000), labels(1000);
    for (int i = 0; i < 20; ++i) {
        tokens->read(i, 1000, sequence.data(), labels.data());
        for (std::size_t at = 0; at < sequence.size(); ++at)
            ++successors[sequence[at]][labels[at]];
    }
    for (const auto& [token, followers] : successors) {
        EXPECT_LE(followers.size(), 4U) << token;
        int total = 0;
        int most = 0;
        for (const auto& [follower, count] : followers) {
            total += count;
            most = std::max(most, count);
        }
        EXPECT_GT(most, total * 0.4) << token;
    }
}

TEST(TextBytes, BytesOfTheFileInOrder)
{
    const auto text = textBytes(inSource("LICENSE"), 256, 32);
    std::vector<std::int64_t> tokens(32), labels(32);
    text->read(0, 32, tokens.data(), labels.data());
    std::vector<std::int64_t> next(32), nextLabels(32);
    text->read(1, 32, next.data(), nextLabels.data());
    EXPECT_EQ(labels.back(), next.front());
    EXPECT_THROW(textBytes(inSource("LICENSE"), 255, 32), InputError);
    EXPECT_THROW(textBytes(inSource("LICENSE"), 256, 10000000), InputError);
    std::vector<std::int64_t> many(10000000);
    EXPECT_THROW(text->read(0, 10000000, many.data(), many.data()), InputError);
}

TEST(TextBytes, AFileThatBecomesShorterIsTold)
{
    const TemporaryFolder folder;
    const std::string path = folder.write("text", std::string(1000, 'a'));
    const auto text = textBytes(path, 256, 100);
    std::filesystem::resize_file(path, 650);
    std::vector<std::int64_t> tokens(100), labels(100);
    text->read(5, 100, tokens.data(), labels.data()); // bytes 500 to 600
    try {
        text->read(6, 100, tokens.data(), labels.data());
        ADD_FAILURE() << "read what is not there";
    } catch (const EnvironmentError& error) {
        EXPECT_EQ(std::string(error.what()),
                  path + ": cannot be read at byte 650: it has become shorter since the run began");
    }
}

} // namespace
} // namespace shardwright
