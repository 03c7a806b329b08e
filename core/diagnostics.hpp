#pragma once

// Wrong input is reported all at once: file, place, what is wrong, what would be right. Readers collect Findings and
// throw one InputError at the end; `main` prints every finding and exits with code 2.

#include <stdexcept>
#include <string>
#include <vector>

namespace shardwright {

struct Finding {
    std::string file;     // path as the user gave it; "command line" for options
    std::string place;    // JSON pointer ("/training/micro_batch"), "line 3, column 5", or an option ("--nodes")
    std::string what;     // what is wrong, with the offending value
    std::string expected; // what would be right; may be empty where `what` already says it

    /// "file: place: what; expected ..." on one line.
    std::string text() const;
    bool operator==(const Finding&) const = default;
};

/// Bad input. Carries every finding; what() is their texts joined by newlines.
class InputError : public std::runtime_error {
public:
    explicit InputError(std::vector<Finding> findings);
    InputError(std::string file, std::string place, std::string what, std::string expected = {});

    const std::vector<Finding>& findings() const { return m_findings; }

private:
    std::vector<Finding> m_findings;
};

/// The machine lacks something: a file that cannot be written, a missing folder. Exit code 3.
class EnvironmentError : public std::runtime_error {
public:
    explicit EnvironmentError(const std::string& what) : std::runtime_error(what) {}
};

/// Collects findings about one file.
class Findings {
public:
    explicit Findings(std::string file) : m_file(std::move(file)) {}

    const std::string& file() const { return m_file; }
    bool empty() const { return m_findings.empty(); }
    const std::vector<Finding>& all() const { return m_findings; }

    void add(std::string place, std::string what, std::string expected = {});
    void add(const InputError& error);
    /// Throws InputError when anything was found.
    void throwIfAny() const;

private:
    std::string m_file;
    std::vector<Finding> m_findings;
};

/// The entry of `known` nearest to `word` by edit distance, or empty when none is near: for "did you mean".
std::string nearestWord(const std::string& word, const std::vector<std::string>& known);

} // namespace shardwright
