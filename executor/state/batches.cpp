#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/diagnostics.hpp"
#include "core/units.hpp"
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

/// Sequences follow one another through the text and start over at its end, shifted by what was left. The file is read
/// as it is needed: texts may be larger than memory.
class TextBytes final : public BatchSource {
public:
    TextBytes(std::string path, std::int64_t sequence) : m_path(std::move(path))
    {
        m_descriptor = ::open(m_path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe is told, not waited for
        if (m_descriptor < 0)
            throw InputError(m_path, "", fmt::format("cannot be opened: {}", std::strerror(errno)),
                             "the path of a text");
        try {
            struct stat status {};
            if (::fstat(m_descriptor, &status) != 0 || !S_ISREG(status.st_mode))
                throw InputError(m_path, "", "is no regular file", "a text, of which any part can be read again");
            m_size = status.st_size;
            refuseShort(sequence);
        } catch (...) {
            ::close(m_descriptor);
            throw;
        }
    }
    ~TextBytes() override { ::close(m_descriptor); }
    TextBytes(const TextBytes&) = delete;
    TextBytes& operator=(const TextBytes&) = delete;

    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        refuseShort(length);
        const std::int64_t start = checkedMultiply(index, length) % (m_size - length);
        std::vector<unsigned char> bytes(static_cast<std::size_t>(length) + 1);
        for (std::size_t done = 0; done < bytes.size();) {
            const std::int64_t at = start + static_cast<std::int64_t>(done);
            const ssize_t got = ::pread(m_descriptor, bytes.data() + done, bytes.size() - done, at);
            if (got < 0 && errno == EINTR)
                continue;
            if (got <= 0)
                throw EnvironmentError(
                    fmt::format("{}: cannot be read at byte {}: {}", m_path, at,
                                got == 0 ? "it has become shorter since the run began" : std::strerror(errno)));
            done += static_cast<std::size_t>(got);
        }
        for (std::size_t i = 0; i + 1 < bytes.size(); ++i) {
            tokens[i] = bytes[i];
            labels[i] = bytes[i + 1];
        }
    }

private:
    void refuseShort(std::int64_t length) const
    {
        if (m_size <= length)
            throw InputError(
                m_path, "",
                fmt::format("{} bytes hold no whole sequence of {} tokens and the one behind it", m_size, length),
                fmt::format("a text of {} bytes or more", length + 1));
    }

    std::string m_path;
    int m_descriptor = -1;
    std::int64_t m_size = 0;
};

} // namespace

std::unique_ptr<BatchSource> syntheticTokens(std::int64_t vocab, std::uint64_t seed)
{
    return std::make_unique<SyntheticTokens>(vocab, seed);
}

std::unique_ptr<BatchSource> textBytes(const std::string& path, std::int64_t vocab, std::int64_t sequence)
{
    if (vocab < kByteValues)
        throw InputError(path, "", fmt::format("the model's vocabulary of {} tokens does not hold all bytes", vocab),
                         "a model of 256 tokens or more");
    return std::make_unique<TextBytes>(path, sequence);
}

} // namespace shardwright
