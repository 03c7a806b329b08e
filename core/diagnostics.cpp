#include "core/diagnostics.hpp"

#include <algorithm>
#include <numeric>

namespace shardwright {

namespace {

std::string joined(const std::vector<Finding>& findings)
{
    std::string text;
    for (const Finding& finding : findings) {
        if (!text.empty())
            text += '\n';
        text += finding.text();
    }
    return text;
}

std::size_t editDistance(const std::string& left, const std::string& right)
{
    std::vector<std::size_t> row(right.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= left.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= right.size(); ++j) {
            const std::size_t substitution = diagonal + (left[i - 1] == right[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
        }
    }
    return row.back();
}

} // namespace

std::string Finding::text() const
{
    std::string text = file;
    if (!place.empty())
        text += (text.empty() ? "" : ": ") + place;
    if (!text.empty())
        text += ": ";
    text += what;
    if (!expected.empty())
        text += "; expected " + expected;
    return text;
}

InputError::InputError(std::vector<Finding> findings)
    : std::runtime_error(joined(findings)), m_findings(std::move(findings))
{
}

InputError::InputError(std::string file, std::string place, std::string what, std::string expected)
    : InputError(std::vector<Finding>{{std::move(file), std::move(place), std::move(what), std::move(expected)}})
{
}

void Findings::add(std::string place, std::string what, std::string expected)
{
    m_findings.push_back({m_file, std::move(place), std::move(what), std::move(expected)});
}

void Findings::add(const InputError& error)
{
    m_findings.insert(m_findings.end(), error.findings().begin(), error.findings().end());
}

void Findings::throwIfAny() const
{
    if (!m_findings.empty())
        throw InputError(m_findings);
}

std::string nearestWord(const std::string& word, const std::vector<std::string>& known)
{
    if (word.size() > 100)
        return {};
    // Of equally near words the one that begins alike longest: fingers slip at the end ("llama-2-7bb").
    const auto sharedBeginning = [&word](const std::string& other) {
        const std::size_t length = std::min(word.size(), other.size());
        const auto differs =
            std::mismatch(word.begin(), word.begin() + static_cast<std::ptrdiff_t>(length), other.begin());
        return differs.first - word.begin();
    };
    std::string best;
    std::size_t bestDistance = std::max<std::size_t>(2, word.size() / 3) + 1;
    for (const std::string& candidate : known) {
        const std::size_t distance = editDistance(word, candidate);
        const bool tie = distance == bestDistance && !best.empty();
        if (distance < bestDistance || (tie && sharedBeginning(candidate) > sharedBeginning(best))) {
            bestDistance = distance;
            best = candidate;
        }
    }
    return best;
}

} // namespace shardwright
