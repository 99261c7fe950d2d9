"""Put the data into a bill of materials: `python .ci/sbom.py sbom.json`, after cyclonedx-py wrote the packages."""

import json
import sys
import tomllib
from hashlib import sha256
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"


def component(name: str, facts: dict) -> dict:
    """A folder of data as a component: its licence, a hash of its list of hashes, what it was made from."""
    sums = (DATA / name / "SHA256SUMS").read_bytes()
    made_from = [{"name": "made from", "value": f"{one['name']}: {one['licence']}"} for one in facts.get("sources", [])]
    return {
        "type": "data",
        "bom-ref": f"data/{name}",
        "name": f"data/{name}",
        "licenses": [{"expression": facts["stored"]}],
        "hashes": [{"alg": "SHA-256", "content": sha256(sums).hexdigest()}],
        "properties": made_from,
    }


def main(path: Path) -> None:
    """Add a component for each folder that data/licences.toml names."""
    bill = json.loads(path.read_text(encoding="utf-8"))
    folders = tomllib.loads((DATA / "licences.toml").read_text(encoding="utf-8"))
    bill.setdefault("components", []).extend(component(*item) for item in folders.items() if (DATA / item[0]).is_dir())
    path.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: {len(bill['components'])} components, {len(folders)} of them data")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
