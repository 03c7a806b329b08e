#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "planner/configs/yaml.hpp"
#include "planner/configs/yaml_scalar.hpp"

namespace shardwright {
namespace {

std::string problemOf(const std::string& text)
{
    try {
        parseYaml(text, "a.yaml");
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

// What yaml.safe_load of PyYAML 6.0 gives for each of these.
TEST(Yaml, ReadsScalarsAsPyYamlDoes)
{
    EXPECT_EQ(yamlScalar("no"), Json(false));
    EXPECT_EQ(yamlScalar("On"), Json(true));
    EXPECT_EQ(yamlScalar("~"), Json(nullptr));
    EXPECT_EQ(yamlScalar("1_000"), Json(1000));
    EXPECT_EQ(yamlScalar("010"), Json(8));
    EXPECT_EQ(yamlScalar("0x1F"), Json(31));
    EXPECT_EQ(yamlScalar("1e8"), Json("1e8"));
    EXPECT_EQ(yamlScalar("1.0e8"), Json("1.0e8"));
    EXPECT_EQ(yamlScalar("1.5e+3"), Json(1500.0));
    EXPECT_EQ(yamlScalar("08"), Json("08"));
    EXPECT_EQ(yamlScalar("."), Json("."));
    EXPECT_EQ(yamlScalar("n"), Json("n"));
}

TEST(Yaml, KeepsThePlaceOfEverySetting)
{
    const YamlDocument document = parseYaml("a: 1\nb:\n  c: 'no'\n  d: [x, y]\n", "a.yaml");
    EXPECT_EQ(document.json, Json::parse(R"({"a": 1, "b": {"c": "no", "d": ["x", "y"]}})"));
    EXPECT_EQ(document.places.at("/b/c"), "line 3, column 6");
    EXPECT_EQ(document.places.at("/b/d/1"), "line 4, column 10");
}

TEST(Yaml, RefusesWhatWouldHideOrExplode)
{
    EXPECT_NE(problemOf("a: 1\na: 2\n").find("line 2, column 1: the key \"a\" stands twice"), std::string::npos);
    EXPECT_NE(problemOf("a: &x [1]\nb: *x\n").find("alias"), std::string::npos);
    EXPECT_NE(problemOf("a: !!python/none x\n").find("tag"), std::string::npos);
    EXPECT_NE(problemOf("a: 1\n---\nb: 2\n").find("more than one"), std::string::npos);
    EXPECT_NE(problemOf(std::string(200, '[') + std::string(200, ']')).find("levels deep"), std::string::npos);
    EXPECT_NE(problemOf("a: {x: 1\n").find("not valid YAML"), std::string::npos);
    EXPECT_NE(problemOf("a: \xff\n").find("UTF-8"), std::string::npos);
    EXPECT_NE(problemOf("").find("empty"), std::string::npos);
    EXPECT_NE(problemOf("a: 1\nb\x04: 2\n").find("line 2, column 2: holds the control character 0x04"),
              std::string::npos);
}

TEST(Yaml, WritesWhatReadsBackTheSame)
{
    const Json json = Json::parse(R"({"mixed_precision": "no", "type": "NO", "on": true, "n": 12, "none": null,
        "small": 1e-08, "big": 5e+20, "list": ["a b", "it's", "1e8", "tab\there", ""], "map": {"empty": {}, "x-1": [1]},
        "port": "08", "date": "2024-01-01", "time": "1:30"})");
    const std::string text = writeYaml(json);
    EXPECT_EQ(parseYaml(text, "a.yaml").json, json) << text;
    EXPECT_NE(text.find("mixed_precision: 'no'\n"), std::string::npos);
    EXPECT_NE(text.find("'on': true\n"), std::string::npos);
}

} // namespace
} // namespace shardwright
