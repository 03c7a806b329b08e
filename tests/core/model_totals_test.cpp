// Totals of real models, to the last digit, against figures that other people published.

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"

using namespace shardwright;

namespace {

struct Published {
    const char* id;
    std::int64_t parameters;
    const char* provenance;
};

const Published kTotals[] = {
    {"llama-2-7b", 6738415616, "Hugging Face safetensors metadata"},
    {"llama-2-13b", 13015864320, "Hugging Face safetensors metadata"},
    {"llama-2-70b", 68976648192, "Hugging Face safetensors metadata"},
    {"llama-3-8b", 8030261248, "Hugging Face safetensors metadata"},
    {"llama-3-70b", 70553706496, "Hugging Face safetensors metadata"},
    {"llama-3.1-405b", 405853388800, "Hugging Face safetensors metadata"},
    {"llama-3.2-1b", 1235814400, "Hugging Face safetensors metadata"},
    {"llama-3.2-3b", 3212749824, "Hugging Face safetensors metadata"},
    {"tinyllama-1.1b", 1100048384, "Hugging Face safetensors metadata"},
    {"mistral-7b", 7241732096, "Hugging Face safetensors metadata"},
    {"mixtral-8x7b", 46702792704, "Hugging Face safetensors metadata"},
    {"mixtral-8x22b", 140630071296, "Hugging Face safetensors metadata"},
    {"qwen2.5-7b", 7615616512, "Hugging Face safetensors metadata"},
    {"qwen2.5-0.5b", 494032768, "Hugging Face safetensors metadata"},
    {"qwen2.5-1.5b", 1543714304, "Hugging Face safetensors metadata"},
    {"qwen2.5-72b", 72706203648, "Hugging Face safetensors metadata"},
    {"qwen3-0.6b", 596049920, "Hugging Face safetensors metadata"},
    {"qwen3-8b", 8190735360, "Hugging Face safetensors metadata"},
    {"qwen3-32b", 32762123264, "Hugging Face safetensors metadata"},
    {"qwen3-30b-a3b", 30532122624, "Hugging Face safetensors metadata"},
    {"qwen3-235b-a22b", 235093634560, "Hugging Face safetensors metadata"},
    {"gemma-2b", 2506172416, "Hugging Face safetensors metadata"},
    {"gemma-7b", 8537680896, "Hugging Face safetensors metadata"},
    {"gemma-2-9b", 9241705984, "Hugging Face safetensors metadata"},
    {"phi-3-mini", 3821079552, "Hugging Face safetensors metadata"},
    {"phi-4", 14659507200, "Hugging Face safetensors metadata"},
    {"phi-2", 2779683840, "Hugging Face safetensors metadata"},
    {"phi-1.5", 1418270720, "Hugging Face safetensors metadata"},
    {"gpt2", 124439808, "torch, sum of numel"},
    {"gpt2-medium", 354823168, "torch, sum of numel"},
    {"gpt2-large", 774030080, "torch, sum of numel"},
    {"gpt2-xl", 1557611200, "torch, sum of numel"},
    {"pythia-6.9b", 6857302016, "Pythia model card"},
    {"pythia-160m", 162322944, "Pythia model card"},
    {"gpt-neox-20b", 20554567680, "GPT-NeoX model card"},
    {"bloom-176b", 176247271424, "BLOOM model card"},
    {"bloom-560m", 559214592, "BLOOM model card"},
    {"falcon-7b", 6921720704, "Hugging Face safetensors metadata"},
    {"falcon-40b", 41303293952, "Hugging Face safetensors metadata"},
    {"falcon-180b", 179522565120, "Hugging Face safetensors metadata"},
    {"deepseek-v3", 671026404352, "checkpoint 671,026,419,200 less 58 x 256 router buffers"},
    {"gpt-j-6b", 6050882784, "Hugging Face safetensors metadata"},
    {"qwen1.5-moe-a2.7b", 14315784192, "Hugging Face safetensors metadata"},
    {"deepseek-v2-lite", 15706484224, "Hugging Face safetensors metadata"},
    {"mpt-7b-hf", 6649286656, "Hugging Face safetensors metadata"},
    {"opt-125m", 125239296, "torch, sum of numel"},
};

const Published kActive[] = {
    {"mixtral-8x7b", 12879925248, "12.9B, Mixtral of Experts (arXiv 2401.04088); digits: transformers, 2 of 8 experts"},
    {"qwen3-30b-a3b", 3353032704, "3.3B, Qwen3 model card; digits: huggingface.js"},
    {"qwen3-235b-a22b", 22190763520, "22B, Qwen3 model card; digits: huggingface.js"},
};

// NumParams of llm-foundry's benchmark tables: the learned positions follow the sequence length of the run.
// https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md
struct MptRow {
    const char* id;
    std::int64_t sequenceLength;
    std::int64_t parameters;
};

const MptRow kMptRows[] = {
    {"mpt-125m", 512, 124131840},    {"mpt-125m", 1024, 124525056},  {"mpt-125m", 2048, 125311488},
    {"mpt-125m", 4096, 126884352},   {"mpt-125m", 8192, 130030080},  {"mpt-125m", 16384, 136321536},
    {"mpt-125m", 32768, 148904448},  {"mpt-125m", 65536, 174070272}, {"mpt-350m", 512, 354412544},
    {"mpt-350m", 1024, 354936832},   {"mpt-350m", 2048, 355985408},  {"mpt-350m", 4096, 358082560},
    {"mpt-350m", 8192, 362276864},   {"mpt-350m", 16384, 370665472}, {"mpt-350m", 32768, 387442688},
    {"mpt-350m", 65536, 420997120},  {"mpt-760m", 512, 758111232},   {"mpt-760m", 1024, 758897664},
    {"mpt-760m", 2048, 760470528},   {"mpt-760m", 4096, 763616256},  {"mpt-760m", 8192, 769907712},
    {"mpt-760m", 16384, 782490624},  {"mpt-760m", 32768, 807656448}, {"mpt-760m", 65536, 857988096},
    {"mpt-1b", 512, 1312804864},     {"mpt-1b", 1024, 1313853440},   {"mpt-1b", 2048, 1315950592},
    {"mpt-1b", 4096, 1320144896},    {"mpt-1b", 8192, 1328533504},   {"mpt-1b", 16384, 1345310720},
    {"mpt-1b", 32768, 1378865152},   {"mpt-1b", 65536, 1445974016},  {"mpt-3b", 512, 2647905280},
    {"mpt-3b", 1024, 2649216000},    {"mpt-3b", 2048, 2651837440},   {"mpt-3b", 4096, 2657080320},
    {"mpt-3b", 8192, 2667566080},    {"mpt-3b", 16384, 2688537600},  {"mpt-3b", 32768, 2730480640},
    {"mpt-3b", 65536, 2814366720},   {"mpt-7b", 512, 6652567552},    {"mpt-7b", 1024, 6654664704},
    {"mpt-7b", 2048, 6658859008},    {"mpt-7b", 4096, 6667247616},   {"mpt-7b", 8192, 6684024832},
    {"mpt-7b", 16384, 6717579264},   {"mpt-7b", 32768, 6784688128},  {"mpt-7b", 65536, 6918905856},
    {"mpt-13b", 512, 12846090240},   {"mpt-13b", 1024, 12848711680}, {"mpt-13b", 2048, 12853954560},
    {"mpt-13b", 4096, 12864440320},  {"mpt-13b", 8192, 12885411840}, {"mpt-13b", 16384, 12927354880},
    {"mpt-13b", 32768, 13011240960}, {"mpt-30b", 512, 29964204032},  {"mpt-30b", 1024, 29967874048},
    {"mpt-30b", 2048, 29975214080},  {"mpt-30b", 4096, 29989894144}, {"mpt-30b", 8192, 30019254272},
    {"mpt-70b", 2048, 64862437376},
};

} // namespace

TEST(ModelTotals, equalThePublishedCounts)
{
    for (const Published& published : kTotals)
        EXPECT_EQ(readModel(published.id).parameters(), published.parameters)
            << published.id << ", " << published.provenance;
}

TEST(ModelTotals, activeParametersEqualThePublishedCounts)
{
    for (const Published& published : kActive)
        EXPECT_EQ(readModel(published.id).activeParameters(), published.parameters)
            << published.id << ", " << published.provenance;
}

TEST(ModelTotals, activeParametersOfDeepseekV3AreThose37BillionOfItsReport)
{
    // arXiv 2412.19437: 37B activated for each token.
    EXPECT_NEAR(static_cast<double>(readModel("deepseek-v3").activeParameters()), 37e9, 0.6e9);
}

TEST(ModelTotals, mptEqualsEveryRowOfTheBenchmarkTables)
{
    for (const MptRow& row : kMptRows) {
        const std::string file = homeFolder() + "/models/" + row.id + "/config.json";
        Json config = parseJson(readTextFile(file), file);
        config["max_seq_len"] = row.sequenceLength;
        EXPECT_EQ(modelFromJson(config, row.id, file).parameters(), row.parameters)
            << row.id << " at " << row.sequenceLength;
    }
}

TEST(ModelTotals, papersModelsHaveTheSizesTheirPapersGive)
{
    // In billions, as printed; the tolerance is half of the last digit printed. SC21 (arXiv 2104.04473) table 1; ZeRO
    // (arXiv 1910.02054): the sizes name the models; ZeRO-Infinity (arXiv 2104.07857): trillions of its figure 2a.
    const auto billions = [](const char* id) { return static_cast<double>(readModel(id).parameters()) / 1e9; };
    EXPECT_NEAR(billions("gpt-175b"), 174.6, 0.05);
    EXPECT_NEAR(billions("gpt-1t"), 1008.0, 0.05);
    EXPECT_NEAR(billions("zero-7.5b"), 7.5, 0.05);
    EXPECT_NEAR(billions("zero-1.4b"), 1.4, 0.05);
    EXPECT_NEAR(billions("zero-40b"), 40, 0.5);
    EXPECT_NEAR(billions("zero-60b"), 60, 0.5);
    EXPECT_NEAR(billions("zero-infinity-0.1t"), 100, 5);
    EXPECT_NEAR(billions("zero-infinity-10t"), 10050, 20);
    EXPECT_NEAR(billions("zero-infinity-100t"), 101470, 20);
}

TEST(ModelTotals, blocksOfTheZeroPapersModelsHaveTheSizeInTheirName)
{
    // The papers name models by layers x 12 hidden^2, cut or rounded to whole billions (78 x 4096 is their "15B").
    for (const std::string& id : modelIds()) {
        if (id.rfind("zero-", 0) != 0 || id.rfind("zero-infinity", 0) == 0 || id == "zero-7.5b" || id == "zero-1.4b")
            continue;
        const Model model = readModel(id);
        const double named = std::stod(id.substr(id.rfind('-') + 1)) * 1e9;
        const auto blocks = static_cast<double>(model.architecture.layers * model.layer(1).numel());
        EXPECT_NEAR(blocks / named, 1, 0.05) << id;
    }
}

TEST(ModelTotals, everyModelThatShipsIsTheSumOfItsListing)
{
    for (const std::string& id : modelIds()) {
        const Model model = readModel(id);
        std::int64_t sum = 0;
        for (const NamedParameter& parameter : listParameters(model)) {
            std::int64_t product = 1;
            for (const std::int64_t extent : parameter.shape)
                product *= extent;
            EXPECT_EQ(product, parameter.numel) << id << " " << parameter.name;
            sum += product;
        }
        EXPECT_EQ(sum, model.parameters()) << id;
    }
}
