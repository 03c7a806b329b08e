#include <gtest/gtest.h>

#include "core/json_cursor.hpp"

namespace shardwright {
namespace {

std::string messageOf(const std::string& text)
{
    try {
        parseJson(text, "f.json");
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

TEST(ParseJson, NamesLineAndColumnOfASyntaxError)
{
    const std::string message = messageOf("{\n  \"a\": 1,\n  \"b\" 2\n}");
    EXPECT_NE(message.find("f.json: line 3, column 7"), std::string::npos) << message;
}

TEST(ParseJson, RejectsADuplicateKey)
{
    EXPECT_NE(messageOf(R"({"a": 1, "a": 2})").find("\"a\" stands twice"), std::string::npos);
}

TEST(ParseJson, RejectsDeepNesting)
{
    EXPECT_NE(messageOf(std::string(5000, '[')).find("levels deep"), std::string::npos);
}

TEST(ParseJson, SaysWhereAKeyStandsTwiceAndWhereItIsTooDeep)
{
    EXPECT_EQ(messageOf(R"({"x": 1, "list": [0, [1], {"a/b": {"k": 1, "k": 2}}]})"),
              "f.json: /list/2/a~1b/k: the key \"k\" stands twice in one object; expected each key once");
    EXPECT_EQ(messageOf(R"([{"a": 1, "b": 2}, {"a": 1}])"), ""); // the same key in two objects
    const std::string deep = messageOf(R"({"top": [7, )" + std::string(5000, '['));
    EXPECT_EQ(deep.rfind("f.json: /top/1/0/0", 0), 0U) << deep;
}

TEST(ParseJson, SaysWhatIsNotValidInItsOwnWords)
{
    const std::string literal = messageOf(R"({"sequence_length": NaN})");
    EXPECT_NE(literal.find("invalid literal"), std::string::npos) << literal;
    const std::string overflow = messageOf(R"({"sequence_length": 1e400})");
    EXPECT_NE(overflow.find("number overflow parsing '1e400'"), std::string::npos) << overflow;
    for (const std::string& message : {literal, overflow})
        EXPECT_EQ(message.find("json.exception"), std::string::npos) << message;
    EXPECT_LT(messageOf("{\"" + std::string(100000, 'x')).size(), 400U); // an endless key is not repeated in full
}

TEST(JsonCursor, TellsAllProblemsAtOnceWithPointers)
{
    const Json json = parseJson(R"({"layers": -1, "hiden": 4, "list": {"x": 1.5}})", "m.json");
    Findings findings("m.json");
    const JsonCursor cursor(json, findings);
    cursor.rejectUnknownKeys({"layers", "hidden", "list"});
    std::int64_t layers = 7;
    cursor.read("layers", layers, 1);
    EXPECT_EQ(layers, 7);
    const auto list = cursor.find("list");
    ASSERT_TRUE(list);
    std::int64_t x = 3;
    list->read("x", x);
    ASSERT_EQ(findings.all().size(), 3U);
    EXPECT_EQ(findings.all()[0].text(), "m.json: /hiden: is not a known key; expected \"hidden\" perhaps");
    EXPECT_EQ(findings.all()[1].text(), "m.json: /layers: is -1; expected a whole number of at least 1");
    EXPECT_EQ(findings.all()[2].place, "/list/x");
}

TEST(JsonCursor, TakesWholeFloatsAsIntegers)
{
    const Json json = parseJson(R"({"a": 5e8})", "m.json");
    Findings findings("m.json");
    std::int64_t value = 0;
    JsonCursor(json, findings).read("a", value);
    EXPECT_EQ(value, 500000000);
    EXPECT_TRUE(findings.empty());
}

} // namespace
} // namespace shardwright
