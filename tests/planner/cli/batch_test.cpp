#include <gtest/gtest.h>

#include <csignal>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/json_cursor.hpp"
#include "tests/paths.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

Json question(const std::string& model)
{
    return Json::parse(R"({"schema": "shardwright-scenario/1", "model": ")" + model +
                       R"(", "cluster": "dgx-a100-80gb", "training": {"sequence_length": 1024},
                       "strategies": ["ddp", "fsdp2-full-shard"]})");
}

TEST(CliBatch, OneResultALineAndTheSameAsCompare)
{
    const TemporaryFolder folder;
    Json first = question("gpt2");
    first["name"] = "small";
    const std::string file = folder.write("sweep.jsonl", first.dump() + "\n\n" + question("llama-2-7b").dump());
    const Ran ran = shardplan({"batch", file});
    EXPECT_EQ(ran.exitCode, 0);
    EXPECT_EQ(ran.err, "");
    const std::vector<std::string> results = lines(ran.out);
    ASSERT_EQ(results.size(), 2u);
    Json small = Json::parse(results[0]);
    EXPECT_EQ(small["line"], 1);
    small.erase("line");
    EXPECT_EQ(small, shardplanJson({"compare", folder.write("small.json", first.dump()), "--format", "json"}));
    const Json second = Json::parse(results[1]);
    EXPECT_EQ(second["line"], 3); // empty lines count, so that an editor finds it
    EXPECT_EQ(second["scenario"], "line 3");
}

TEST(CliBatch, ABadLineIsALineAndTheRunGoesOn)
{
    Json wrong = question("gpt2");
    wrong["training"] = {{"micro_batch", 0}, {"sequence_lenght", 8}};
    RunOptions options;
    options.input = "{not json\n" + wrong.dump() + "\n[]\n\"text\"\n" + question("no-such-model").dump() + "\n" +
                    std::string("\x80\xff\n", 3) + question("gpt2").dump() + "\n";
    const Ran ran = shardplan({"batch", "-"}, options);
    EXPECT_EQ(ran.exitCode, 1);
    EXPECT_EQ(ran.err, "");
    const std::vector<std::string> results = lines(ran.out);
    ASSERT_EQ(results.size(), 7u);
    for (std::size_t i = 0; i < 6; ++i) {
        const Json line = Json::parse(results[i]);
        EXPECT_EQ(line["line"], i + 1);
        ASSERT_FALSE(line["error"]["findings"].empty());
        for (const Json& finding : line["error"]["findings"])
            EXPECT_FALSE(finding["what"].get<std::string>().empty());
    }
    const Json syntax = Json::parse(results[0])["error"]["findings"][0];
    EXPECT_EQ(syntax["file"], "standard input:1");
    EXPECT_EQ(syntax["place"], "line 1, column 3"); // "no" cannot become "null"
    const Json findings = Json::parse(results[1])["error"]["findings"];
    ASSERT_EQ(findings.size(), 2u);
    EXPECT_EQ(findings[0]["place"], "/training/micro_batch");
    EXPECT_EQ(findings[1]["place"], "/training/sequence_lenght");
    EXPECT_TRUE(Json::parse(results[6]).contains("plans"));
}

TEST(CliBatch, AnOverlongLineIsOneBadLine)
{
    const TemporaryFolder folder;
    const std::string file =
        folder.write("long.jsonl", std::string((64u << 20) + 1, ' ') + "\n" + question("gpt2").dump() + "\n");
    const Ran ran = shardplan({"batch", file});
    EXPECT_EQ(ran.exitCode, 1);
    const std::vector<std::string> results = lines(ran.out);
    ASSERT_EQ(results.size(), 2u);
    EXPECT_EQ(Json::parse(results[0])["error"]["findings"][0]["what"], "is longer than 64 MiB");
    EXPECT_TRUE(Json::parse(results[1]).contains("plans"));
}

TEST(CliBatch, NothingIsNothing)
{
    const Ran ran = shardplan({"batch", "-"});
    EXPECT_EQ(ran.exitCode, 0);
    EXPECT_EQ(ran.out, "");
    EXPECT_EQ(shardplan({"batch", "/nowhere.jsonl"}).exitCode, 2);
}

/// A batch that is talked to while it runs.
class Conversation {
public:
    Conversation()
    {
        if (::pipe(m_input) != 0 || ::pipe(m_output) != 0)
            std::abort();
        m_child = ::fork();
        if (m_child == 0) {
            ::dup2(m_input[0], STDIN_FILENO);
            ::dup2(m_output[1], STDOUT_FILENO);
            for (const int end : {m_input[0], m_input[1], m_output[0], m_output[1]})
                ::close(end);
            ::execl(shardplanProgram(), "shardplan", "batch", "-", static_cast<char*>(nullptr));
            ::_exit(126);
        }
        ::close(m_input[0]);
        ::close(m_output[1]);
    }
    Conversation(const Conversation&) = delete;
    Conversation& operator=(const Conversation&) = delete;
    ~Conversation()
    {
        ::close(m_input[1]);
        ::close(m_output[0]);
    }

    void say(const std::string& line) const
    {
        const std::string text = line + '\n';
        ASSERT_EQ(::write(m_input[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
    }
    std::string hear() const
    {
        std::string line;
        for (char c = 0; ::read(m_output[0], &c, 1) == 1 && c != '\n';)
            line += c;
        return line;
    }
    void interrupt() const { ::kill(m_child, SIGINT); }
    int exitCode() const
    {
        int status = 0;
        ::waitpid(m_child, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

private:
    int m_input[2] = {-1, -1};
    int m_output[2] = {-1, -1};
    pid_t m_child = -1;
};

TEST(CliBatch, AnswersEachLineBeforeTheNextIsThereAndEndsCleanlyOnInterrupt)
{
    const Conversation batch;
    for (int line = 1; line <= 2; ++line) {
        batch.say(question("gpt2").dump());
        EXPECT_EQ(Json::parse(batch.hear())["line"], line); // would hang if it waited for the end of the input
    }
    batch.interrupt();
    EXPECT_EQ(batch.hear(), ""); // no half line
    EXPECT_EQ(batch.exitCode(), 130);
}

TEST(CliBatch, MemoryDoesNotGrowWithTheNumberOfLines)
{
    const auto largest = [](int count) {
        const TemporaryFolder folder;
        std::string text;
        for (int i = 0; i < count; ++i)
            text += question("gpt2").dump() + "\n";
        const std::string file = folder.write("many.jsonl", text);
        const pid_t child = ::fork();
        if (child == 0) {
            if (std::freopen("/dev/null", "w", stdout) == nullptr)
                ::_exit(125);
            // Under the address sanitizer freed memory stays in quarantine; here it would count as growth.
            ::setenv("ASAN_OPTIONS", "quarantine_size_mb=1", 1);
            ::execl(shardplanProgram(), "shardplan", "batch", file.c_str(), static_cast<char*>(nullptr));
            ::_exit(126);
        }
        int status = 0;
        rusage usage{};
        ::wait4(child, &status, 0, &usage);
        EXPECT_EQ(status, 0);
        return usage.ru_maxrss; // KiB
    };
    const long few = largest(20);
    EXPECT_LT(largest(400), few + few / 4);
}

} // namespace

} // namespace shardwright::testing
