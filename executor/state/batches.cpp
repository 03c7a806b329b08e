#include <algorithm>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "core/diagnostics.hpp"
#include "core/json_cursor.hpp"
#include "executor/state/random.hpp"
#include "executor/state/sources.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kByteValues = 256;

/// Each token has kChoices successors, drawn once; the first of them follows half of the time. The entropy of a step is
/// 1.75 bits, far below that of a uniform vocabulary.
class SyntheticTokens final : public BatchSource {
public:
    SyntheticTokens(std::int64_t vocab, std::uint64_t seed) : m_vocab(vocab), m_seed(seed) {}

    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        const std::uint64_t key = randomBits(m_seed, static_cast<std::uint64_t>(index));
        auto token = static_cast<std::int64_t>(randomBits(key, 0) % static_cast<std::uint64_t>(m_vocab));
        for (std::int64_t i = 0; i < length; ++i) {
            tokens[i] = token;
            token = after(token, randomBits(key, static_cast<std::uint64_t>(i) + 1));
            labels[i] = token;
        }
    }

private:
    static constexpr std::int64_t kChoices = 4;

    std::int64_t after(std::int64_t token, std::uint64_t bits) const
    {
        // Halves, quarters and two eighths: the number of leading ones of three bits.
        std::int64_t choice = 0;
        while (choice < kChoices - 1 && (bits >> choice & 1U) != 0)
            ++choice;
        const std::uint64_t successor =
            randomBits(m_seed ^ 0x5bd1e995U, static_cast<std::uint64_t>(token * kChoices + choice));
        return static_cast<std::int64_t>(successor % static_cast<std::uint64_t>(m_vocab));
    }

    std::int64_t m_vocab;
    std::uint64_t m_seed;
};

/// Sequences follow one another through the text and start over at its end, shifted by what was left.
class TextBytes final : public BatchSource {
public:
    TextBytes(std::string path, std::string text) : m_path(std::move(path)), m_text(std::move(text)) {}

    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        const auto size = static_cast<std::int64_t>(m_text.size());
        if (size <= length)
            throw InputError(
                m_path, "",
                fmt::format("has {} bytes, less than a sequence of {} tokens and the one behind it", size, length),
                "a longer text");
        const std::int64_t start = checkedMultiply(index, length) % (size - length);
        for (std::int64_t i = 0; i < length; ++i) {
            tokens[i] = at(start + i);
            labels[i] = at(start + i + 1);
        }
    }

private:
    std::int64_t at(std::int64_t i) const { return static_cast<unsigned char>(m_text[static_cast<std::size_t>(i)]); }

    std::string m_path;
    std::string m_text;
};

} // namespace

std::unique_ptr<BatchSource> syntheticTokens(std::int64_t vocab, std::uint64_t seed)
{
    return std::make_unique<SyntheticTokens>(vocab, seed);
}

std::unique_ptr<BatchSource> textBytes(const std::string& path, std::int64_t vocab)
{
    if (vocab < kByteValues)
        throw InputError(path, "", fmt::format("the model's vocabulary of {} tokens does not hold all bytes", vocab),
                         "a model of 256 tokens or more");
    std::string text = readTextFile(path);
    if (text.size() < 2)
        throw InputError(path, "", fmt::format("has {} bytes", text.size()), "a text longer than a sequence");
    return std::make_unique<TextBytes>(path, std::move(text));
}

} // namespace shardwright
